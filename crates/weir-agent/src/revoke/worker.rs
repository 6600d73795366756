//! The thread that talks to conntrack: a dump of 100,000 entries keeps nothing else waiting.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::mpsc as channel;
use weir_nft::conntrack::{Conntrack, ConntrackError, Entry, Marking};

/// Entries that are judged in one turn.
const CHUNK: usize = 512;
/// Chunks that may wait; then the dump does.
const QUEUE: usize = 4;

enum Command {
    Look { pods: Arc<HashSet<IpAddr>>, also: HashSet<IpAddr> },
    Mark(Vec<Marking>),
}

/// What the thread says.
#[derive(Debug)]
pub(super) enum Report {
    /// Some of the entries that were asked for; each of them is answered by a [`Worker::mark`].
    Entries(Vec<Entry>),
    /// The look is over, and what was to be marked is.
    Done(Result<(), ConntrackError>),
}

/// See the module. It ends with this handle.
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
    reports: channel::Receiver<Report>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(mark: NonZeroU32, reader: Conntrack, writer: Conntrack) -> std::io::Result<Worker> {
        let (commands, inbox) = mpsc::channel();
        let (outbox, reports) = channel::channel(QUEUE);
        let thread = Thread { mark, reader, writer, inbox, outbox, unanswered: 0, result: Ok(()) };
        let thread = std::thread::Builder::new().name("weir-conntrack".into()).spawn(move || thread.run())?;
        Ok(Worker { commands, reports, thread: Some(thread) })
    }

    /// Begins a look at the entries that have one of these addresses as an end, or are marked.
    pub(super) fn look(&self, pods: Arc<HashSet<IpAddr>>, also: HashSet<IpAddr>) {
        // a thread that is gone shows in `report`
        let _ = self.commands.send(Command::Look { pods, also });
    }

    /// The answer to a chunk of entries.
    pub(super) fn mark(&self, markings: Vec<Marking>) {
        let _ = self.commands.send(Command::Mark(markings));
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn report(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            // It ends with this handle, or else by a panic, which is the agent's own.
            None => match self.thread.take().map(JoinHandle::join) {
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                _ => std::future::pending().await,
            },
        }
    }
}

struct Thread {
    mark: NonZeroU32,
    reader: Conntrack,
    /// Marks while the dump goes on: a socket has one dump at a time, and it is in the way of answers.
    writer: Conntrack,
    inbox: mpsc::Receiver<Command>,
    outbox: channel::Sender<Report>,
    /// Chunks that are being judged.
    unanswered: usize,
    result: Result<(), ConntrackError>,
}

/// The other end is gone.
struct Over;

impl Thread {
    fn run(mut self) {
        while let Ok(command) = self.inbox.recv() {
            if let Command::Look { pods, also } = command
                && self.look(&pods, &also).is_err()
            {
                return;
            }
        }
    }

    fn look(&mut self, pods: &HashSet<IpAddr>, also: &HashSet<IpAddr>) -> Result<(), Over> {
        let Thread { mark, reader, writer, inbox, outbox, unanswered, result } = self;
        let concerns = |entry: &Entry| {
            let ours = |address: &IpAddr| pods.contains(address) || also.contains(address);
            // a child of another connection may have other ends than that
            let master = entry.master.iter().flat_map(|m| [m.source, m.destination]);
            entry.mark & mark.get() != 0
                || [entry.orig.source, entry.reply.source].into_iter().chain(master).any(|a| ours(&a))
        };
        let mut answer = |command, unanswered: &mut usize| {
            let Command::Mark(markings) = command else { return };
            *unanswered -= 1;
            if !markings.is_empty()
                && let Err(error) = writer.mark(*mark, &markings)
            {
                *result = Err(error);
            }
        };
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut over = false;
        let dumped = reader.dump(|entry| {
            if over || !concerns(&entry) {
                return;
            }
            chunk.push(entry);
            if chunk.len() == CHUNK {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                over = outbox.blocking_send(Report::Entries(full)).is_err();
                *unanswered += 1;
                inbox.try_iter().for_each(|command| answer(command, unanswered));
            }
        });
        if over || outbox.blocking_send(Report::Entries(chunk)).is_err() {
            return Err(Over);
        }
        *unanswered += 1;
        while *unanswered > 0 {
            answer(inbox.recv().map_err(|_| Over)?, unanswered);
        }
        let result = std::mem::replace(result, Ok(()));
        outbox.blocking_send(Report::Done(dumped.and(result))).map_err(|_| Over)
    }
}
