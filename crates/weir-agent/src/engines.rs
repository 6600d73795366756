//! Other policy engines on this node, known by what they leave in the kernel: names of chains, tables, ipsets and links.
//!
//! Two engines on one node drop what either drops. That is safe, and wanted for the time of a migration; but who does
//! not know of the second one looks for a deny in the wrong place. So it is said, and nothing else is done.
//!
//! Names are those of the projects' sources (November 2026; docs/neighbours.md has where). A trace is no proof that the
//! engine runs: most leave their rules when they are turned off, and their rules go on acting.

use std::collections::{BTreeMap, BTreeSet};

use weir_nft::Nft;
use weir_nft::legacy::Legacy;
use weir_nft::others::OtherTable;

use crate::links::LinkTable;

/// How to know one, and what to say of it.
struct Engine {
    /// In metrics.
    name: &'static str,
    title: &'static str,
    /// The chain that it always has in iptables' filter table.
    chain: Option<&'static str>,
    /// Its tables in nf_tables.
    tables: &'static [&'static str],
    /// How the names of its ipsets begin.
    ipsets: &'static [&'static str],
    /// Its interfaces.
    links: &'static [&'static str],
    advice: &'static str,
}

const OFF: &str = "turn one of the two off";

const ENGINES: [Engine; 7] = [
    Engine {
        name: "azure-npm",
        title: "Azure NPM",
        chain: Some("AZURE-NPM"),
        tables: &[],
        ipsets: &["azure-npm-"],
        links: &[],
        advice: "turn NPM off, and then remove what it leaves: weir-agent npm-leftovers",
    },
    Engine {
        name: "calico",
        title: "Calico",
        chain: Some("cali-FORWARD"),
        tables: &["calico"],
        ipsets: &["cali40", "cali60"],
        links: &["bpfin.cali", "bpfout.cali"],
        advice: "turn one of the two off; in Canal, run flannel alone",
    },
    Engine {
        name: "weave-net",
        title: "Weave Net's policy controller",
        chain: Some("WEAVE-NPC"),
        tables: &[],
        ipsets: &[],
        links: &[],
        advice: "run Weave Net with EXPECT_NPC=0 and without weave-npc",
    },
    Engine {
        name: "kube-router",
        title: "kube-router",
        chain: Some("KUBE-ROUTER-FORWARD"),
        tables: &[],
        ipsets: &[],
        links: &[],
        advice: "run it with --run-firewall=false",
    },
    Engine {
        name: "antrea",
        title: "Antrea",
        chain: Some("ANTREA-FORWARD"),
        tables: &["antrea"],
        ipsets: &[],
        links: &["antrea-gw0"],
        advice: "its pods are ports of Open vSwitch, whose packets may not come to Weir's rules at all: let Antrea \
                 enforce policies alone",
    },
    Engine {
        name: "kube-network-policies",
        title: "kube-network-policies",
        chain: None,
        tables: &["kube-network-policies"],
        ipsets: &[],
        links: &[],
        advice: OFF,
    },
    Engine {
        name: "kindnet",
        title: "kindnet's policy engine",
        chain: None,
        tables: &["kindnet-network-policies"],
        ipsets: &[],
        links: &[],
        advice: "in kind, set disableDefaultCNI and use another network plugin, or know that both drop",
    },
];

/// Names of what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Of tables in nf_tables, with their families.
    tables: Vec<(String, String)>,
    /// Of chains, with the tables that they are in.
    chains: Vec<(String, String)>,
    ipsets: Vec<String>,
}

/// Where iptables-nft has its filter table (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
const FAMILIES: [u8; 2] = [2, 10];
const FILTER: &str = "filter";

impl Traces {
    /// Looks: the names of tables and ipsets, one chain of each engine by its name, and the filter table of
    /// iptables-legacy if there is one. The cost does not grow with the chains of others, of which kube-proxy may have
    /// tens of thousands. What cannot be read is not there.
    pub fn read(nft: &mut Nft) -> Traces {
        let mut traces = Traces::default();
        let tables = nft.other_tables().unwrap_or_default();
        for table in FAMILIES.map(|family| OtherTable { family, name: FILTER.to_owned() }) {
            if tables.contains(&table) {
                let there = ENGINES.iter().filter_map(|engine| engine.chain);
                let there = there.filter(|chain| nft.has_chain(&table, chain).unwrap_or(false));
                traces.chains.extend(there.map(|chain| (format!("table {table}"), chain.to_owned())));
            }
        }
        traces.tables = tables.into_iter().map(|table| (table.to_string(), table.name)).collect();
        if let Ok(Some(legacy)) = Legacy::read(FILTER) {
            let there =
                legacy.chains().filter(|chain| ENGINES.iter().any(|engine| engine.chain == Some(*chain)));
            let table = "table filter of iptables-legacy".to_owned();
            traces.chains.extend(there.map(|chain| (table.clone(), chain.to_owned())));
        }
        traces.ipsets = nft.other_ipsets().unwrap_or_default().into_keys().collect();
        traces
    }
}

/// The engines of which there is a trace, by their names in metrics, with what to say.
pub fn seen(traces: &Traces, links: &LinkTable) -> BTreeMap<&'static str, String> {
    ENGINES.iter().filter_map(|engine| Some((engine.name, engine.seen(traces, links)?))).collect()
}

/// All names that [`seen`] may have.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|engine| engine.name)
}

impl Engine {
    fn seen(&self, traces: &Traces, links: &LinkTable) -> Option<String> {
        let mut what = BTreeSet::new();
        for (title, _) in traces.tables.iter().filter(|(_, name)| self.tables.contains(&name.as_str())) {
            what.insert(format!("table {title}"));
        }
        for (table, chain) in traces.chains.iter().filter(|(_, chain)| self.chain == Some(chain)) {
            what.insert(format!("chain {chain} in {table}"));
        }
        let mine = |ipset: &&String| self.ipsets.iter().any(|prefix| ipset.starts_with(prefix));
        if let Some(ipset) = traces.ipsets.iter().find(mine) {
            what.insert(format!("ipset {ipset}"));
        }
        if let Some(link) = self.links.iter().find(|link| links.has_link(link)) {
            what.insert(format!("interface {link}"));
        }
        if what.is_empty() {
            return None;
        }
        let what = what.into_iter().collect::<Vec<_>>().join(", ");
        let Engine { title, advice, .. } = self;
        Some(format!(
            "{title} enforces policies on this node, too, or has left its rules here ({what}): what either of the two \
             denies is dropped; {advice} (docs/neighbours.md)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(names: &[&str]) -> Traces {
        let chains = names.iter().map(|name| ("table ip filter".to_owned(), (*name).to_owned()));
        Traces { chains: chains.collect(), ..Traces::default() }
    }

    fn engines(traces: &Traces) -> Vec<&'static str> {
        seen(traces, &LinkTable::new()).into_keys().collect()
    }

    #[test]
    fn each_engine_is_known_by_its_own_names() {
        for (chain, engine) in [
            ("AZURE-NPM", "azure-npm"),
            ("cali-FORWARD", "calico"),
            ("WEAVE-NPC", "weave-net"),
            ("KUBE-ROUTER-FORWARD", "kube-router"),
            ("ANTREA-FORWARD", "antrea"),
        ] {
            assert_eq!(engines(&chains(&[chain])), [engine], "{chain}");
        }
        for (table, engine) in [
            ("calico", "calico"),
            ("kube-network-policies", "kube-network-policies"),
            ("kindnet-network-policies", "kindnet"),
        ] {
            let tables = vec![(format!("inet {table}"), table.to_owned())];
            assert_eq!(engines(&Traces { tables, ..Traces::default() }), [engine]);
        }
        let ipsets = vec!["azure-npm-3922407721".to_owned(), "cali40s:hXFAKbAyZM3L".to_owned()];
        assert_eq!(engines(&Traces { ipsets, ..Traces::default() }), ["azure-npm", "calico"]);
    }

    #[test]
    fn what_is_on_every_node_is_nobodys_trace() {
        let names =
            ["KUBE-FORWARD", "KUBE-SERVICES", "KUBE-FIREWALL", "DOCKER-USER", "FORWARD", "CALIFORNIA"];
        assert_eq!(engines(&chains(&names)), [""; 0]);
        let ipsets = vec!["KUBE-CLUSTER-IP".to_owned(), "azure".to_owned()];
        assert_eq!(engines(&Traces { ipsets, ..Traces::default() }), [""; 0]);
    }

    #[test]
    fn the_sentence_names_one_trace_of_each_place() {
        let said =
            seen(&chains(&["cali-FORWARD", "cali-INPUT"]), &LinkTable::new()).remove("calico").unwrap();
        assert!(said.contains("(chain cali-FORWARD in table ip filter):"), "{said}");
    }
}
