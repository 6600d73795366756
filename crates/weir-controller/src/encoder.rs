//! From the compiler's deltas to what agents have yet to be told, each change encoded once.

use std::sync::Arc;

use prost::bytes::Bytes;
use weir_compiler::slice::{Change, Changes, PeerSet, PeerSetId};
use weir_proto::Key;

use crate::pending::{MemberDelta, Pending};

/// The changes of one batch, as far as somebody needed them encoded.
#[derive(Debug, Default)]
pub struct Encoder {
    /// By their places in the batch's table.
    ready: Vec<Option<Ready>>,
}

#[derive(Debug)]
enum Ready {
    Put(Arc<Key>, Bytes),
    /// With all of its members.
    PeerSet(PeerSetId, Arc<Key>, Bytes, Arc<[Bytes]>),
    Gone(Arc<Key>, Bytes),
    Members(PeerSetId, Arc<MemberDelta>),
}

impl Encoder {
    /// Adds changes of a slice to what its agent has yet to be told. All calls must be about one batch.
    pub fn add(&mut self, changes: &Changes, to: &mut Pending) {
        let table = changes.table();
        self.ready.resize_with(table.len(), || None);
        for at in changes.places().iter().flat_map(|places| places.start as usize..places.end as usize) {
            match self.ready[at].get_or_insert_with(|| Ready::new(&table[at])) {
                Ready::Put(key, bytes) => to.put(key, bytes),
                Ready::PeerSet(id, key, bytes, members) => {
                    to.put(key, bytes);
                    to.anew(*id, members);
                }
                Ready::Gone(key, bytes) => to.gone(key, bytes),
                Ready::Members(id, delta) => to.members(*id, delta),
            }
        }
    }
}

impl Ready {
    fn new(change: &Change) -> Self {
        match (change, Key::of(change)) {
            (Change::PeerSet(id, set, members), Some((key, _))) if !matches!(set, PeerSet::Cidrs(_)) => {
                let members = weir_proto::members(*id, true, members, &[]).into();
                Ready::PeerSet(*id, Arc::new(key), weir_proto::change(change), members)
            }
            (Change::Members { id, added, removed }, _) => {
                let encoded = weir_proto::members(*id, false, added, removed);
                let (added, removed) = (added.to_vec(), removed.to_vec());
                Ready::Members(*id, Arc::new(MemberDelta { added, removed, encoded }))
            }
            (_, Some((key, true))) => Ready::Put(Arc::new(key), weir_proto::change(change)),
            (_, Some((key, false))) => Ready::Gone(Arc::new(key), weir_proto::change(change)),
            (_, None) => unreachable!("only members have no key"),
        }
    }
}
