//! A large table: Weir's transaction against `nft -f` of the same, in turns.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_dataplane::difference;
use weir_dataplane::model::{
    Bytes, Chain, CmpOp, Element, Expr, Family, Field, MetaKey, Op, PayloadBase, Reg, Rule, Set, SetDecl,
    Table, Transaction, Verdict,
};
use weir_lab::netns::Netns;
use weir_nft::Nft;

use crate::figures::{Figure, Report};

const ELEMENTS: u32 = 100_000;
const CHAINS: usize = 2_000;
const RULES: usize = 5;
const ROUNDS: usize = 5;
/// nft's time is 1.
const GOAL: f64 = 0.6;

/// Measures elements and chains.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.heading("In bulk, against nft -f of the same table");
    let netns = Netns::new()?;
    netns.run(|| {
        compare(report, &format!("{ELEMENTS} elements"), &elements())?;
        compare(report, &format!("{CHAINS} chains of {RULES} rules"), &chains())
    })
}

fn compare(report: &mut Report, what: &str, table: &Table) -> Result<()> {
    let mut kernel = Nft::open()?;
    let text = table.to_string();
    let clear = Transaction { family: table.family, table: table.name.clone(), ops: vec![Op::DeleteTable] };
    let [mut ours, mut dump, mut theirs] = [const { Vec::new() }; 3];
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let transaction = difference(None, table).context("nothing to do")?;
        kernel.apply(std::slice::from_ref(&transaction))?;
        ours.push(started.elapsed());
        let started = Instant::now();
        let back = kernel.dump(table.family, &table.name)?;
        dump.push(started.elapsed());
        ensure!(back.as_ref() == Some(table), "{what}: what Weir programmed is not what it should be");
        kernel.apply(std::slice::from_ref(&clear))?;

        let took = nft(&text)?;
        let back = kernel.dump(table.family, &table.name)?;
        ensure!(back.as_ref() == Some(table), "{what}: what nft -f programmed is not the same");
        kernel.apply(std::slice::from_ref(&clear))?;
        theirs.push(took);
        ratios.push(ours[ours.len() - 1].as_secs_f64() / took.as_secs_f64());
    }
    report.add(Figure::times("bulk", format!("{what}: Weir"), ours));
    report.add(Figure::times("bulk", format!("{what}: nft -f"), theirs));
    ratios.sort_by(f64::total_cmp);
    let ratio = Figure::one("bulk", format!("{what}: Weir / nft -f"), "ratio", ratios[ROUNDS / 2]);
    report.add(Figure { samples: ROUNDS, ..ratio }.goal(GOAL));
    report.add(Figure::times("bulk", format!("{what}: read back by Weir"), dump));
    Ok(())
}

/// Runs `nft -f -` in this thread's namespace: the time from its start to its end.
fn nft(text: &str) -> Result<Duration> {
    let started = Instant::now();
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run nft (package nftables)")?;
    let mut stdin = child.stdin.take().context("nft has no input")?;
    // an nft that stops early closes the pipe: its own message, on stderr, says more
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    let status = child.wait()?;
    ensure!(status.success(), "nft -f ended with {status}");
    Ok(started.elapsed())
}

fn table() -> Table {
    Table {
        family: Family::Inet,
        name: "bulk".to_owned(),
        sets: Default::default(),
        chains: Default::default(),
    }
}

fn set(elements: u32) -> Set {
    let key = smallvec::smallvec![Field::Ipv4];
    let address = |i: u32| Bytes::from_slice(&(0x0a00_0000 + i).to_be_bytes());
    Set {
        decl: SetDecl { key, data: None, interval: false, constant: false },
        elements: (0..elements).map(|i| (address(i), Element::default())).collect(),
    }
}

fn elements() -> Table {
    Table { sets: [("many".to_owned(), set(ELEMENTS))].into(), ..table() }
}

/// Rules as in a ruleset chain: protocol and port, peers, verdict.
fn chains() -> Table {
    let load = |key| Expr::Meta { key, dreg: Reg(0) };
    let is = |value: &[u8]| Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, value: Bytes::from_slice(value) };
    let payload = |base, offset, len| Expr::Payload { base, offset, len, dreg: Reg(0) };
    let rule = |port: u16| Rule {
        exprs: vec![
            load(MetaKey::NfProto),
            is(&[2]),
            payload(PayloadBase::Network, 12, 4),
            Expr::Lookup { set: "peers".to_owned(), sreg: Reg(0), dest: None, negate: false },
            load(MetaKey::L4Proto),
            is(&[6]),
            payload(PayloadBase::Transport, 2, 2),
            is(&port.to_be_bytes()),
            Expr::Verdict(Verdict::Accept),
        ],
        comment: None,
    };
    let rules: Vec<Rule> = (8080..).take(RULES).map(rule).collect();
    let chain = |i| (format!("chain_{i}"), Chain { hook: None, rules: rules.clone() });
    Table {
        sets: [("peers".to_owned(), set(10))].into(),
        chains: (0..CHAINS).map(chain).collect(),
        ..table()
    }
}
