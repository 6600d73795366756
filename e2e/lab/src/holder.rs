//! A lab that outlives the command that made it: a process holds it and answers on a socket.
//!
//! ```text
//!   weir-lab up ──starts──> weir-lab hold (the lab lives in it)
//!   weir-lab probe, apply, delete, shell, down ──one line of JSON──> /run/weir-lab/NAME/socket
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::lab::Lab;
use crate::objects::Objects;
use crate::ports::Port;
use crate::report::Report;

/// What a command asks of the holder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Probe, on these ports or on those that matter.
    Probe(Vec<Port>),
    /// Lay the objects of these files over the present ones.
    Apply(Vec<PathBuf>),
    /// Take the objects of these files out.
    Delete(Vec<PathBuf>),
    /// The namespace of this node or pod.
    Find(String),
    /// End.
    Down,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// To a probe.
    Report(Report),
    /// To a change: what there is to say about it.
    Done(Vec<String>),
    /// To a question for a namespace: a path that can be opened.
    Found(String),
    /// It went wrong.
    Failed(String),
}

/// Where labs of `up` live.
pub fn state_dir(name: &str) -> PathBuf {
    Path::new("/run/weir-lab").join(name)
}

/// Serves requests until `Down`.
pub fn hold(mut lab: Lab, dir: &Path, on_ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let socket = dir.join("socket");
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    on_ready()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let request: Request = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(e) => {
                let _ = writeln!(stream, "{}", serde_json::to_string(&Reply::Failed(e.to_string()))?);
                continue;
            }
        };
        // Its standard error is the log of the lab.
        eprintln!("weir-lab: asked for {request:?}");
        let last = matches!(request, Request::Down);
        if last {
            // Gone before the answer, so that a next `up` finds nothing.
            drop(lab);
            let _ = std::fs::remove_dir_all(dir);
            let _ = writeln!(stream, "{}", serde_json::to_string(&Reply::Done(Vec::new()))?);
            return Ok(());
        }
        let reply = answer(&mut lab, request).unwrap_or_else(|e| Reply::Failed(format!("{e:#}")));
        // A client that has gone meanwhile is no reason to end.
        let _ = writeln!(stream, "{}", serde_json::to_string(&reply)?);
    }
    Ok(())
}

fn answer(lab: &mut Lab, request: Request) -> Result<Reply> {
    Ok(match request {
        Request::Probe(ports) => Reply::Report(lab.report(&ports)?),
        Request::Apply(paths) => {
            let (objects, notes) = Objects::read(&paths)?;
            lab.apply(objects)?;
            Reply::Done(notes)
        }
        Request::Delete(paths) => {
            let (objects, notes) = Objects::read(&paths)?;
            lab.delete(&objects)?;
            Reply::Done(notes)
        }
        Request::Find(name) => match lab.netns(&name) {
            Some(netns) => Reply::Found(netns.path()),
            None => bail!("{}", not_found(lab, &name)),
        },
        Request::Down => Reply::Done(Vec::new()),
    })
}

fn not_found(lab: &Lab, name: &str) -> String {
    let nodes = lab.cluster().nodes.iter().map(|n| n.name.clone());
    let known: Vec<String> = nodes.chain(lab.cluster().pods.iter().map(|p| p.key.to_string())).collect();
    format!("no node or pod {name} (or several pods); there are {}", known.join(", "))
}

/// Asks the lab called `name`.
pub fn ask(name: &str, request: &Request) -> Result<Reply> {
    let socket = state_dir(name).join("socket");
    let mut stream =
        UnixStream::connect(&socket).map_err(|_| anyhow!("no lab {name} is up: `weir-lab up -f FILE`"))?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    if line.is_empty() {
        bail!("lab {name} ended without an answer; its log is {}", state_dir(name).join("log").display());
    }
    match serde_json::from_str(&line)? {
        Reply::Failed(why) => bail!("{why}"),
        reply => Ok(reply),
    }
}
