//! From a slice to a table: what should be in the kernel, and what must change there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Change, Direction, Member, NodeSlice, PeerSetId, ProfileId, SlicePod};

use crate::change::Edited;
use crate::model::{
    Bytes, Chain, Element, ElementData, Family, Field, Hook, HookPoint, MetaKey, Rule, Set, SetData, SetDecl,
    Table, Transaction, Verdict,
};
use crate::rules::{ESTABLISHED, End, IpFamily, Match, RELATED, decl};
use crate::rulesets::{address_key, chain_name, chains, member_key, peer_set_names, peer_sets, port_sets};

/// The name of Weir's table.
pub const TABLE: &str = "weir";

/// How an address is attached to the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attachment {
    /// The interface of this name belongs to the address' pod alone: whatever comes out of it is the
    /// pod's, whatever goes into it is for the pod. Dispatch by interface.
    Own(String),
    /// The address is reached directly, through an interface with others behind it (a bridge, a
    /// node's own network). Dispatch by address; the name is what `iifname` and `oifname` show.
    /// Never wrong, also where the interface turns out to be the pod's own.
    Shared(String),
}

impl Attachment {
    /// The interface's name.
    pub fn interface(&self) -> &str {
        match self {
            Attachment::Own(name) | Attachment::Shared(name) => name,
        }
    }
}

/// Where the addresses of the node's pods are attached. An address that is missing is dispatched
/// by address.
pub type Attachments = BTreeMap<IpAddr, Attachment>;

const EGRESS_BY_INTERFACE: &str = "egress_by_interface";
const INGRESS_BY_INTERFACE: &str = "ingress_by_interface";

fn by_address(direction: Direction, family: IpFamily) -> String {
    format!("{}_by_address_{}", direction.as_str(), family.suffix())
}

fn by_interface(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => EGRESS_BY_INTERFACE,
        Direction::Ingress => INGRESS_BY_INTERFACE,
    }
}

fn hairpin(family: IpFamily) -> String {
    format!("hairpin_{}", family.suffix())
}

/// What the plan has beside what policies say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Packets of connections whose mark has one of these bits are dropped (U9).
    pub revoked_mark: Option<NonZeroU32>,
    /// Isolated pods drop TCP that is new without SYN (U27).
    pub drop_mid_stream: bool,
}

/// A place in a map or set: its name and the key in it.
type At = (String, Bytes);

/// A slice with the table that it makes. Each change of the slice costs work in proportion to
/// what it changes in the table.
#[derive(Debug)]
pub struct Planner {
    options: Options,
    slice: NodeSlice,
    attachments: Attachments,
    edited: Edited,
    /// What each pod has in the dispatch maps.
    dispatch: BTreeMap<ObjectKey, BTreeMap<At, Element>>,
    /// Whose each of these elements is. Two pods have one for as long as an address has
    /// passed from one to the other and its route has not: the last pod's is in the table.
    claims: BTreeMap<At, BTreeSet<ObjectKey>>,
    pods_of: BTreeMap<ProfileId, BTreeSet<ObjectKey>>,
}

impl Default for Planner {
    fn default() -> Self {
        Planner::new()
    }
}

impl Planner {
    /// The plan of an empty slice: chains that let everything pass.
    pub fn new() -> Self {
        Planner::with(Options::default())
    }

    /// The same with options.
    pub fn with(options: Options) -> Self {
        Planner {
            options,
            slice: NodeSlice::default(),
            attachments: Attachments::new(),
            edited: Edited::new(empty_table(options.revoked_mark)),
            dispatch: BTreeMap::new(),
            claims: BTreeMap::new(),
            pods_of: BTreeMap::new(),
        }
    }

    /// The table that the slice makes.
    pub fn table(&self) -> &Table {
        self.edited.table()
    }

    /// The slice.
    pub fn slice(&self) -> &NodeSlice {
        &self.slice
    }

    /// From now on, isolated pods drop TCP that is new without SYN (U27).
    pub fn drop_mid_stream(&mut self) {
        self.options.drop_mid_stream = true;
        for (id, ruleset) in &self.slice.rulesets {
            for (name, chain) in chains(&self.slice, *id, ruleset, self.options) {
                self.edited.put_chain(&name, chain);
            }
        }
    }

    /// Takes changes of the slice.
    pub fn update(&mut self, changes: &[Change]) {
        let mut pods = BTreeSet::new();
        for change in changes {
            self.change(change, &mut pods);
        }
        self.dispatch(pods);
    }

    /// Takes the attachments of all addresses.
    pub fn attach(&mut self, attachments: Attachments) {
        let differs = |address: &IpAddr| self.attachments.get(address) != attachments.get(address);
        let pods = self.slice.pods.iter().filter(|(_, pod)| pod.addresses.iter().any(differs));
        let pods: BTreeSet<ObjectKey> = pods.map(|(key, _)| key.clone()).collect();
        self.attachments = attachments;
        self.dispatch(pods);
    }

    /// What must change in a kernel that has the table of when this was last called; `None`: nothing.
    pub fn take(&mut self) -> Option<Transaction> {
        self.edited.take()
    }

    fn change(&mut self, change: &Change, pods: &mut BTreeSet<ObjectKey>) {
        // while what goes is still known
        match change {
            Change::PeerSetGone(id) => {
                let set = &self.slice.peer_sets[id].set;
                peer_set_names(*id, set).iter().for_each(|name| self.edited.remove_set(name));
            }
            Change::PortSetGone(id) => {
                let sets = port_sets(*id, &self.slice.port_sets[id]);
                sets.keys().for_each(|name| self.edited.remove_set(name));
            }
            Change::RulesetGone(id) => {
                let chains = chains(&self.slice, *id, &self.slice.rulesets[id], self.options);
                chains.keys().for_each(|name| self.edited.remove_chain(name));
            }
            Change::Pod(key, _) | Change::PodGone(key) => {
                if let Some(before) = self.slice.pods.get(key)
                    && let Some(of) = self.pods_of.get_mut(&before.profile)
                {
                    of.remove(key);
                    if of.is_empty() {
                        self.pods_of.remove(&before.profile);
                    }
                }
                pods.insert(key.clone());
            }
            _ => {}
        }
        self.slice.apply(std::slice::from_ref(change));
        match change {
            Change::PeerSet(id, set, members) => {
                for (name, set) in peer_sets(*id, set, members) {
                    self.edited.put_set(&name, set);
                }
            }
            Change::PortSet(id, ports) => {
                for (name, set) in port_sets(*id, ports) {
                    self.edited.put_set(&name, set);
                }
            }
            Change::Ruleset(id, ruleset) => {
                for (name, chain) in chains(&self.slice, *id, ruleset, self.options) {
                    self.edited.put_chain(&name, chain);
                }
            }
            Change::Members { id, added, removed } => self.members(*id, added, removed),
            Change::Profile(id, _) => pods.extend(self.pods_of.get(id).into_iter().flatten().cloned()),
            Change::Pod(key, pod) => {
                self.pods_of.entry(pod.profile).or_default().insert(key.clone());
            }
            _ => {}
        }
    }

    fn members(&mut self, id: PeerSetId, added: &[Member], removed: &[Member]) {
        let set = &self.slice.peer_sets[&id].set;
        for member in removed {
            let (name, key) = member_key(id, set, *member);
            self.edited.remove_element(&name, key);
        }
        for member in added {
            let (name, key) = member_key(id, set, *member);
            self.edited.put_element(&name, key, Element::default());
        }
    }

    /// Writes the dispatch of these pods anew.
    fn dispatch(&mut self, pods: BTreeSet<ObjectKey>) {
        let mut places = BTreeSet::new();
        for key in pods {
            for at in self.dispatch.remove(&key).unwrap_or_default().into_keys() {
                let claims = self.claims.get_mut(&at).expect("what a pod has, it claims");
                claims.remove(&key);
                if claims.is_empty() {
                    self.claims.remove(&at);
                }
                places.insert(at);
            }
            let now = self.slice.pods.get(&key).map(|pod| self.dispatch_of(&key, pod)).unwrap_or_default();
            for at in now.keys() {
                self.claims.entry(at.clone()).or_default().insert(key.clone());
                places.insert(at.clone());
            }
            if !now.is_empty() {
                self.dispatch.insert(key, now);
            }
        }
        for at in places {
            let element =
                self.claims.get(&at).and_then(|pods| pods.last()).map(|pod| &self.dispatch[pod][&at]);
            match element {
                Some(element) => self.edited.put_element(&at.0, at.1, element.clone()),
                None => self.edited.remove_element(&at.0, at.1),
            }
        }
    }

    fn dispatch_of(&self, key: &ObjectKey, pod: &SlicePod) -> BTreeMap<At, Element> {
        let mut elements = BTreeMap::new();
        let profile = &self.slice.profiles[&pod.profile];
        let comment = Some(comment(&key.to_string()));
        for direction in Direction::BOTH {
            let Some(ruleset) = profile.ruleset(direction) else { continue };
            let verdict = Verdict::Jump(chain_name(ruleset, direction));
            for address in &pod.addresses {
                let at = match self.attachments.get(address) {
                    Some(Attachment::Own(interface)) => {
                        (by_interface(direction).to_owned(), interface_key(interface))
                    }
                    Some(Attachment::Shared(_)) | None => {
                        let (family, key) = address_key(*address);
                        (by_address(direction, family), key)
                    }
                };
                let data = Some(ElementData::Verdict(verdict.clone()));
                elements.insert(at, Element { last: None, data, comment: comment.clone() });
            }
        }
        if elements.is_empty() {
            return elements;
        }
        // U3: through a Service, a pod may reach itself
        for (source, attachment) in pod.addresses.iter().filter_map(|a| self.attachments.get_key_value(a)) {
            let (family, source_key) = address_key(*source);
            for destination in pod.addresses.iter().filter(|d| d.is_ipv4() == source.is_ipv4()) {
                let mut element = interface_key(attachment.interface());
                element.extend_from_slice(&source_key);
                element.extend_from_slice(&address_key(*destination).1);
                let value = Element { comment: comment.clone(), ..Element::default() };
                elements.insert((hairpin(family), element), value);
            }
        }
        elements
    }
}

/// A name of an interface as the kernel has it.
fn interface_key(name: &str) -> Bytes {
    let mut key = Bytes::from_elem(0, Field::IfName.len());
    let len = name.len().min(Field::IfName.len() - 1);
    key[..len].copy_from_slice(&name.as_bytes()[..len]);
    key
}

/// A comment of at most 127 bytes, which end with the name: a cut one starts with "..".
fn comment(text: &str) -> String {
    const MAX: usize = 127;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let from = (text.len() - (MAX - 2)..).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("..{}", &text[from..])
}

/// The table of a node without pods.
fn empty_table(revoked_mark: Option<NonZeroU32>) -> Table {
    let mut sets = BTreeMap::new();
    let vmap = |key: &[Field]| SetDecl { data: Some(SetData::Verdict), ..decl(key) };
    let empty = |decl: SetDecl| Set { decl, elements: BTreeMap::new() };
    for direction in Direction::BOTH {
        sets.insert(by_interface(direction).to_owned(), empty(vmap(&[Field::IfName])));
        for family in IpFamily::BOTH {
            sets.insert(by_address(direction, family), empty(vmap(&[family.field()])));
        }
    }
    for family in IpFamily::BOTH {
        let key = [Field::IfName, family.field(), family.field()];
        sets.insert(hairpin(family), empty(decl(&key)));
    }

    // U9: before what is established passes
    let revoked = revoked_mark.map(|bits| Match::default().ct_mark(bits.get()).then(Verdict::Drop));
    let mut first: Vec<Rule> = revoked.into_iter().collect();
    first.extend([
        Match::default().ct_state(ESTABLISHED | RELATED).then(Verdict::Accept), // N90, N93
        // N92: neighbour discovery and multicast listeners
        Match::default().icmpv6_type(130, 137).then(Verdict::Accept),
        Match::default().icmpv6_type(143, 143).then(Verdict::Accept),
    ]);
    let mut from_pod = vec![Match::default().interface_vmap(MetaKey::IifName, EGRESS_BY_INTERFACE)];
    for family in IpFamily::BOTH {
        let map = by_address(Direction::Egress, family);
        from_pod.push(Match::default().address_vmap(family, End::Source, &map));
    }
    let mut to_pod = vec![Match::default().interface_vmap(MetaKey::OifName, INGRESS_BY_INTERFACE)];
    for family in IpFamily::BOTH {
        let map = by_address(Direction::Ingress, family);
        to_pod.push(Match::default().address_vmap(family, End::Destination, &map));
    }
    let hook = |point| Some(Hook { point, priority: 0 });
    // U6: from a pod to its own node. The other way, nothing: N71
    let input =
        Chain { hook: hook(HookPoint::Input), rules: first.iter().chain(&from_pod).cloned().collect() };
    for family in IpFamily::BOTH {
        first.push(Match::default().hairpin_in(family, &hairpin(family)).then(Verdict::Accept));
    }
    let rules = first.into_iter().chain(from_pod).chain(to_pod).collect();
    let forward = Chain { hook: hook(HookPoint::Forward), rules };
    let chains = [("forward".to_owned(), forward), ("input".to_owned(), input)].into();
    Table { family: Family::Inet, name: TABLE.to_owned(), sets, chains }
}
