//! What controllers tell of themselves, for `weir status`: in one ConfigMap, each under its own name.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The ConfigMap, in the controllers' namespace.
pub const CONFIG_MAP: &str = "weir-status";
/// The ConfigMap there that says the mode.
pub const MODE_CONFIG_MAP: &str = "weir-mode";
/// Who has written nothing for so long, in seconds, hangs or is gone; each writes at least once a minute.
pub const SILENT: u64 = 150;

/// What one controller knows. The JSON of it is stable: fields are added, never changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// When it was written, in seconds since 1970.
    pub at: u64,
    /// All objects are known.
    pub synced: bool,
    /// Agents that follow this controller.
    pub agents: usize,
    /// The same, by their versions.
    pub agent_versions: BTreeMap<String, usize>,
    /// The nodes whose kernels do not hold the newest version of their slice, and how many versions are missing.
    pub behind: BTreeMap<String, u64>,
    /// How many nodes that are.
    pub nodes_behind: usize,
    /// What agents are told to do: `enforce`, `off` or `withdrawn`. Absent: this controller has never heard.
    pub mode: Option<String>,
    /// The resourceVersion of the ConfigMap that says so.
    pub mode_version: String,
    /// Why the ConfigMap says nothing that this controller understands now.
    pub mode_problem: Option<String>,
    /// The agents, by the modes that their kernels are in.
    pub modes: BTreeMap<String, usize>,
    /// Nodes whose kernels are in another mode than agents are told, and in which.
    pub other_mode: BTreeMap<String, String>,
    /// With mode `withdrawn`: all nodes whose agents have confirmed it.
    pub withdrawn: BTreeSet<String>,
    /// What kernels refuse: node, and what its agent says.
    pub refused: Vec<(String, String)>,
    /// Of the last changes, from their arrival to the acknowledgement that a kernel holds them.
    pub to_enforce: ToEnforce,
}

/// Of the last 1,024 acknowledgements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ToEnforce {
    /// How many.
    pub count: usize,
    /// Half of them were faster.
    pub median_seconds: f64,
    /// One of a hundred was slower.
    pub p99_seconds: f64,
}
