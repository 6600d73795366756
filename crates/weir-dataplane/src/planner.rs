//! From a slice to a table: what should be in the kernel, and what must change there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Change, Direction, NodeSlice, PortSetId, ProfileId, RulesetId, SlicePod};

use crate::change::Edited;
use crate::model::{
    Bytes, Chain, Element, ElementData, Family, Field, Hook, HookPoint, MetaKey, Set, SetData, SetDecl,
    Table, Transaction, Verdict,
};
use crate::peers::{PeerSets, address_key};
use crate::ports::port_sets;
use crate::rules::{ESTABLISHED, End, IpFamily, Match, RELATED, decl};
use crate::rulesets::{Costs, Layout, chain_name, layout};

/// The name of Weir's table.
pub const TABLE: &str = "weir";

/// All tables that a plan can have. A plan without one of them says that it must not be there. Those of
/// ip and ip6 are in the place of that of inet where sets are ipsets ([`crate::ipset`]).
pub const TABLES: [(Family, &str); 4] =
    [(Family::Inet, TABLE), (Family::Ip, TABLE), (Family::Ip6, TABLE), (Family::Bridge, TABLE)];

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

/// A place in a map or set: its name and the key in it.
type At = (String, Bytes);

/// A slice with the table that it makes. Each change of the slice costs work in proportion to
/// what it changes in the table.
#[derive(Debug)]
pub struct Planner {
    costs: Costs,
    slice: NodeSlice,
    attachments: Attachments,
    edited: Edited,
    /// What the rulesets are in the kernel, by their ids.
    layouts: BTreeMap<RulesetId, Layout>,
    peers: PeerSets,
    /// How many rulesets look up a port set.
    ports: BTreeMap<PortSetId, usize>,
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
        Planner::with_costs(Costs::default())
    }

    /// The same, with other limits on how rulesets are written.
    pub fn with_costs(costs: Costs) -> Self {
        Planner {
            costs,
            slice: NodeSlice::default(),
            attachments: Attachments::new(),
            edited: Edited::new(empty_table()),
            layouts: BTreeMap::new(),
            peers: PeerSets::default(),
            ports: BTreeMap::new(),
            dispatch: BTreeMap::new(),
            claims: BTreeMap::new(),
            pods_of: BTreeMap::new(),
        }
    }

    /// All tables that the slice makes: some of [`TABLES`].
    pub fn tables(&self) -> Vec<&Table> {
        vec![self.table()]
    }

    /// The table `inet weir`, in which are all verdicts of policies.
    pub fn table(&self) -> &Table {
        self.edited.table()
    }

    /// The slice.
    pub fn slice(&self) -> &NodeSlice {
        &self.slice
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

    /// What must change in a kernel that has the tables of when this was last called, in one batch.
    pub fn take(&mut self) -> Vec<Transaction> {
        self.edited.take().into_iter().collect()
    }

    fn change(&mut self, change: &Change, pods: &mut BTreeSet<ObjectKey>) {
        // while what goes is still known
        match change {
            Change::RulesetGone(id) => self.remove_ruleset(*id),
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
            Change::Ruleset(id, _) => self.put_ruleset(*id),
            Change::Members { id, added, removed } => {
                self.peers.members(*id, added, removed, &mut self.edited);
            }
            Change::Profile(id, _) => pods.extend(self.pods_of.get(id).into_iter().flatten().cloned()),
            Change::Pod(key, pod) => {
                self.pods_of.entry(pod.profile).or_default().insert(key.clone());
            }
            _ => {}
        }
    }

    /// Peer sets and port sets are in the table for as long as a ruleset's chains name them.
    fn put_ruleset(&mut self, id: RulesetId) {
        self.remove_ruleset(id);
        let mut layout = layout(&self.slice, id, &self.slice.rulesets[&id], &self.costs);
        for union in &layout.peers {
            self.peers.retain(&self.slice, union, &mut self.edited);
        }
        for port_set in &layout.ports {
            let users = self.ports.entry(*port_set).or_default();
            *users += 1;
            if *users == 1 {
                for (name, set) in port_sets(*port_set, &self.slice.port_sets[port_set]) {
                    self.edited.put_set(&name, set);
                }
            }
        }
        // what is kept of chains and maps is their names
        for (name, map) in &mut layout.maps {
            let decl = map.decl.clone();
            self.edited.put_set(name, std::mem::replace(map, Set { decl, elements: BTreeMap::new() }));
        }
        for (name, chain) in &mut layout.chains {
            self.edited.put_chain(name, std::mem::take(chain));
        }
        self.layouts.insert(id, layout);
    }

    fn remove_ruleset(&mut self, id: RulesetId) {
        let Some(layout) = self.layouts.remove(&id) else { return };
        layout.chains.keys().for_each(|name| self.edited.remove_chain(name));
        layout.maps.keys().for_each(|name| self.edited.remove_set(name));
        for union in &layout.peers {
            self.peers.release(union, &mut self.edited);
        }
        for port_set in &layout.ports {
            let users = self.ports.get_mut(port_set).expect("the ruleset is counted");
            *users -= 1;
            if *users == 0 {
                self.ports.remove(port_set);
                let sets = port_sets(*port_set, &self.slice.port_sets[port_set]);
                sets.keys().for_each(|name| self.edited.remove_set(name));
            }
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
fn empty_table() -> Table {
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

    let mut first = vec![
        Match::default().ct_state(ESTABLISHED | RELATED).then(Verdict::Accept), // N90, N93
        // N92: neighbour discovery and multicast listeners
        Match::default().icmpv6_type(130, 137).then(Verdict::Accept),
        Match::default().icmpv6_type(143, 143).then(Verdict::Accept),
    ];
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
