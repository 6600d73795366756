use super::*;

#[test]
fn verdict_and_direction_are_read_from_the_name_of_a_chain() {
    let id = "gtqupezbmcqc4fw5nokwsz2i2f";
    assert_eq!(told_by(&format!("egress_{id}")), Some((Verdict::Denied, Direction::Egress)));
    assert_eq!(told_by(&format!("ingress_{id}")), Some((Verdict::Denied, Direction::Ingress)));
    assert_eq!(told_by(&format!("audit_egress_{id}")), Some((Verdict::WouldDeny, Direction::Egress)));
    assert_eq!(["", "ingress", "iptables_drop", "audit_", "audit_other_x"].map(told_by), [None; 5]);
}

/// A reader of standard output that has stopped reading.
struct Stuck(Arc<AtomicBool>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        while !self.0.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_is_stuck_makes_nobody_wait() {
    let (found, denials) = mpsc::channel(QUEUE);
    let (lines, to_write) = sync_channel(QUEUE);
    let (metrics, free) = (Metrics::default(), Arc::new(AtomicBool::new(false)));
    let stuck = Stuck(Arc::clone(&free));
    let writer = std::thread::spawn(move || write(&to_write, stuck));
    let end = Arc::default();
    let allowed = Book::new().1;
    let mut denials =
        Denials { node: "n".to_owned(), denials, allowed, lines, metrics: metrics.clone(), end };
    let flow = Flow {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: 6,
        ports: Some((40000, 80)),
    };
    let denial = Denial {
        at: SystemTime::UNIX_EPOCH,
        verdict: Verdict::Denied,
        direction: Direction::Egress,
        flow,
        suppressed: 3,
    };
    let most = 4 * QUEUE;
    for _ in 0..most {
        denials.tell(Next::Denied(denial.clone()), &NodeSlice::default());
    }
    let (logged, lost) = (metrics.denials_logged.get(), metrics.denials_lost.get());
    assert_eq!(logged + lost, most as u64);
    assert!(lost > QUEUE as u64, "{lost}");
    free.store(true, Ordering::Relaxed);
    drop((denials, found));
    writer.join().expect("it ends with the lines");
}

#[test]
fn a_flood_leaves_turns_to_others() {
    let (found, denials) = mpsc::channel(QUEUE);
    let (lines, _to_write) = sync_channel(QUEUE);
    let (metrics, end) = (Metrics::default(), Arc::default());
    let (_allowed, book) = Book::new();
    let node = "n".to_owned();
    let mut denials = Denials { node, denials, allowed: book, lines, metrics: metrics.clone(), end };
    let flow =
        Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), protocol: 1, ports: None };
    let (at, verdict, direction) = (SystemTime::UNIX_EPOCH, Verdict::Denied, Direction::Egress);
    let denial = Denial { at, verdict, direction, flow, suppressed: 0 };
    (0..A_TURN * 3).for_each(|_| found.try_send(denial.clone()).expect("room"));
    for told in 1..=3 {
        let next = denials.denials.try_recv().expect("one more");
        denials.tell(Next::Denied(next), &NodeSlice::default());
        assert_eq!(metrics.denials_logged.get(), (told * A_TURN) as u64);
    }
    assert!(denials.denials.is_empty());
}

#[test]
fn a_line() {
    let flow = Flow {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: 17,
        ports: Some((40000, 53)),
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
    let mut denial =
        Denial { at, verdict: Verdict::Denied, direction: Direction::Ingress, flow, suppressed: 0 };
    assert_eq!(
        line::line("node1", &denial, &NodeSlice::default()).0,
        "{\"time\":\"2027-01-15T08:00:00.123Z\",\"verdict\":\"denied\",\"node\":\"node1\",\"direction\":\"ingress\",\
         \"from\":{\"address\":\"10.0.0.1\",\"port\":40000},\"to\":{\"address\":\"10.0.0.2\",\"port\":53},\
         \"protocol\":\"UDP\",\"policies\":[]}\n"
    );
    (denial.suppressed, denial.flow.ports, denial.flow.protocol) = (7, None, 47);
    let (text, would_allow) = line::line("node1", &denial, &NodeSlice::default());
    assert!(
        text.ends_with(
            "\"to\":{\"address\":\"10.0.0.2\"},\"protocol\":47,\"policies\":[],\"suppressed\":7}\n"
        ),
        "{text}"
    );
    assert!(!would_allow);
    denial.verdict = Verdict::WouldDeny;
    assert!(line::line("node1", &denial, &NodeSlice::default()).0.contains("\"verdict\":\"would-deny\""));
}
