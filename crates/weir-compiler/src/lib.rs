//! Compiles Kubernetes network policy into a rule graph, cut into one slice per node.
//!
//! ```text
//!   Event ──> population   namespaces, pods, addresses; which selectors match whom
//!        └──> policy       a NetworkPolicy, read clause by clause; its problems
//!               └─> lower ──> graph      Ruleset ─> Rule ─> PeerSet, PortSet (petgraph)
//!                     │          │
//!   subjects: what policies select, and what those with one subject say together
//!                     │          │
//!   profiles: pods that the same subjects select, and the rulesets that this gives
//!                                │
//!   commit: what that changes ───┴──> slice: SliceDelta per node ──> NodeSlice
//!     nodes: who has what                    each change once, in one table    │
//!             flow: what both ends say <── verdict: may it pass, and why <─────┘
//! ```
//!
//! There is one way in, [`Compiler::apply`], for the first object and for the millionth change.
//! All is pure: no clock, no I/O; the same events in any order that sources can produce lead to
//! the same slices. Statements cited as N41, U6 or T1 are in `docs/semantics.md`.

mod budget;
pub mod cidr;
mod commit;
mod compiler;
mod deltas;
pub mod flow;
mod graph;
mod identity;
pub mod labels;
mod lower;
mod news;
mod nodes;
pub mod object;
mod policies;
pub mod policy;
mod population;
pub mod ports;
mod profiles;
pub mod ranges;
pub mod selector;
mod selector_index;
pub mod slice;
mod small;
mod snapshot;
mod subjects;
pub mod verdict;

pub use budget::{Budgets, read_within};
pub use compiler::{Compiler, Counts, Deltas, Scope};
pub use identity::{peer_set_id, port_set_id, union_id};
pub use news::Isolated;
