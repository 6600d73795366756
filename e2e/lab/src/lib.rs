//! A cluster in a box: nodes and pods are network namespaces, the agents are the real ones,
//! and the packets are real packets.
//!
//! ```text
//!   manifests ──> objects ──> cluster ──> network ──────────┐      ┌── outer namespace, no way out ──┐
//!   (files)       (JSON,      (who is     (ip -batch in     ├────> │  fabric (bridge)                │
//!       │         completed)   where)      each namespace)  │      │   ├─ eth0 [node] lab1 ── eth0 [pod]
//!       │             │                                     │      │   │             lab2 ── eth0 [pod]
//!       │             └──> a folder ──> agent, one per node ┘      │   └─ eth0 [node] lab3 ── eth0 [pod]
//!       │                                                          └──────────────┬──────────────────┘
//!       └──> expected (the compiler's evaluator) ──> report <── probe (TCP, UDP) ─┘
//! ```
//!
//! - [`objects`] reads manifests, gives nodes and addresses to pods that have none, and writes
//!   what the agents read;
//! - [`cluster`] says from that who lives where, and who owns which address (N75, N77);
//! - [`netns`] and [`network`] build namespaces, links, routes and neighbours, plainly or the way CNI plugins
//!   do it, with or without an overlay between nodes;
//! - [`agent`] runs `weir-agent` in a node's namespace, and never longer than the lab lives;
//! - [`ports`] picks the ports that matter, [`probe`] sends the packets (TCP, UDP, SCTP, ICMP), [`expected`]
//!   asks the evaluator, [`report`] lays the two side by side, [`expectation`] is what people wrote down;
//! - [`scenario`] makes things happen, step by step, with packets after each;
//! - [`watch`] sends packets without a pause, for changes during which no packet may go wrong;
//! - [`lab`] holds it all together, [`holder`] keeps it alive between two commands.
//!
//! Namespaces have no names: file descriptors of this process hold them, so that whatever ends the
//! process, a crash or SIGKILL included, ends them. Agents are tied to it in the same way.

pub mod agent;
pub mod cluster;
pub mod expectation;
pub mod expected;
pub mod frame;
pub mod holder;
pub mod lab;
pub mod netns;
pub mod network;
pub mod objects;
pub mod ports;
pub mod probe;
pub mod report;
pub mod scenario;
pub mod watch;

pub use cluster::Cluster;
pub use lab::{Lab, Options};
pub use report::Report;
