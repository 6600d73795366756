//! From the compiler's deltas to what agents have yet to be told, each change encoded once.

use std::collections::HashMap;
use std::sync::Arc;

use prost::bytes::Bytes;
use weir_compiler::slice::{Change, PeerSetId};
use weir_proto::Key;

use crate::pending::{MemberDelta, Pending};

/// What of one batch has been encoded already. Within a batch, a change of one thing is the same for all nodes.
#[derive(Debug, Default)]
pub struct Encoder {
    puts: HashMap<Key, (Arc<Key>, Bytes)>,
    gone: HashMap<Key, (Arc<Key>, Bytes)>,
    anew: HashMap<PeerSetId, Arc<[Bytes]>>,
    members: HashMap<PeerSetId, Arc<MemberDelta>>,
}

impl Encoder {
    /// Adds changes of a slice to what its agent has yet to be told.
    pub fn add<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>, to: &mut Pending) {
        for change in changes {
            match (Key::of(change), change) {
                (Some((key, true)), _) => {
                    if let Change::PeerSet(id, set, members) = change
                        && !matches!(set, weir_compiler::slice::PeerSet::Cidrs(_))
                    {
                        let all = self
                            .anew
                            .entry(*id)
                            .or_insert_with(|| weir_proto::members(*id, true, members, &[]).into());
                        to.anew(*id, all);
                    }
                    let (key, bytes) = once(&mut self.puts, key, || weir_proto::change(change));
                    to.put(key, bytes);
                }
                (Some((key, false)), _) => {
                    let (key, bytes) = once(&mut self.gone, key, || weir_proto::change(change));
                    to.gone(key, bytes);
                }
                (None, Change::Members { id, added, removed }) => {
                    let delta = self.members.entry(*id).or_insert_with(|| {
                        let encoded = weir_proto::members(*id, false, added, removed);
                        MemberDelta { added: added.to_vec(), removed: removed.to_vec(), encoded }.into()
                    });
                    to.members(*id, delta);
                }
                (None, _) => unreachable!("only members have no key"),
            }
        }
    }
}

fn once(
    all: &mut HashMap<Key, (Arc<Key>, Bytes)>,
    key: Key,
    encode: impl FnOnce() -> Bytes,
) -> &(Arc<Key>, Bytes) {
    all.entry(key).or_insert_with_key(|key| (Arc::new(key.clone()), encode()))
}
