//! From a slice to a table: what should be in the kernel, and what must change there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;

use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{
    Change, Direction, Effect, NodeSlice, PortSetId, Profile, ProfileId, RulesetId, SlicePod,
};

use crate::bridge::{self, Ports};
use crate::change::{Edited, differences};
use crate::guard;
use crate::model::{
    Bytes, Chain, Element, ElementData, Family, Field, Hook, HookPoint, MetaKey, Rule, Set, SetData, SetDecl,
    Table, Transaction, Verdict,
};
use crate::peers::{PeerSets, address_key};
use crate::ports::port_sets;
use crate::rules::{ESTABLISHED, End, IpFamily, Match, RELATED, decl};
use crate::rulesets::{Costs, Layout, chain_name, closed, layout};
use crate::told::{self, Told};

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
pub(crate) type At = (String, Bytes);

/// What a node's operator decides about the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How rulesets are written.
    pub costs: Costs,
    /// Pods send with addresses of their own only (U25).
    pub source_guard: bool,
    /// What looks like a pod and is none that is known is closed (U11).
    pub close_unknown: bool,
    /// What egress policies of pods mean for their own node (U6).
    pub own_node: PodToOwnNode,
    /// Packets of connections whose mark has one of these bits are dropped (U9).
    pub revoked_mark: Option<NonZeroU32>,
    /// Isolated pods drop TCP that is new without SYN (U27).
    pub drop_mid_stream: bool,
    /// What policies deny is told to NFLOG and, where a namespace asks for it, what they allow.
    pub log_denials: Option<DenialLog>,
    /// Nothing is denied: what would be is told. All that drops packets for other reasons is off.
    pub audit: bool,
}

impl Settings {
    /// Those that have a meaning: in audit, nothing is dropped.
    fn effective(self) -> Settings {
        let Settings { audit, .. } = self;
        Settings {
            source_guard: self.source_guard && !audit,
            close_unknown: self.close_unknown && !audit,
            revoked_mark: self.revoked_mark.filter(|_| !audit),
            drop_mid_stream: self.drop_mid_stream && !audit,
            ..self
        }
    }
}

/// How denied packets are told to NFLOG: those of each ruleset up to a rate. The prefix is the name of the
/// ruleset's chain, `egress_ID` or `ingress_ID`, or `audit_egress_ID` where it is not denied but would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenialLog {
    /// Of NFLOG.
    pub group: u16,
    /// Packets a second, of each ruleset.
    pub per_second: u32,
    /// So many at once.
    pub burst: u32,
    /// Bytes of each packet: its headers are enough.
    pub snaplen: u32,
}

impl Default for DenialLog {
    fn default() -> Self {
        DenialLog { group: 29, per_second: 100, burst: 200, snaplen: 128 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            costs: Costs::default(),
            source_guard: true,
            close_unknown: false,
            own_node: PodToOwnNode::default(),
            revoked_mark: None,
            drop_mid_stream: false,
            log_denials: None,
            audit: false,
        }
    }
}

/// A slice with the table that it makes. Each change of the slice costs work in proportion to
/// what it changes in the table.
#[derive(Debug)]
pub struct Planner {
    settings: Settings,
    slice: NodeSlice,
    attachments: Attachments,
    edited: Edited,
    ports: Ports,
    bridge: Option<Table>,
    /// As it was when a transaction was last taken.
    bridge_taken: Option<Table>,
    /// It was made anew since then.
    bridge_made: bool,
    /// What the rulesets are in the kernel, by their ids.
    layouts: BTreeMap<RulesetId, Layout>,
    /// Those of them that the kernel refuses as they are.
    closed: BTreeSet<RulesetId>,
    peers: PeerSets,
    /// How many rulesets look up a port set.
    port_set_users: BTreeMap<PortSetId, usize>,
    /// What each pod has in the dispatch maps.
    dispatch: BTreeMap<ObjectKey, BTreeMap<At, Element>>,
    /// Whose each of these elements is. Two pods have one for as long as an address has
    /// passed from one to the other and its route has not: the last pod's is in the table.
    claims: BTreeMap<At, BTreeSet<ObjectKey>>,
    pods_of: BTreeMap<ProfileId, BTreeSet<ObjectKey>>,
    /// The chains that tell of allowed connections.
    told: Told,
}

impl Default for Planner {
    fn default() -> Self {
        Planner::new()
    }
}

impl Planner {
    /// The plan of an empty slice: chains that let everything pass.
    pub fn new() -> Self {
        Planner::with(Settings::default())
    }

    /// The same, with what is not left to its default.
    pub fn with(settings: Settings) -> Self {
        let settings = settings.effective();
        let mut table = empty_table(settings);
        if settings.source_guard {
            guard::add_to(&mut table);
        }
        if settings.close_unknown {
            let (set, chain) = guard::unknown();
            table.sets.insert(guard::UNKNOWN.to_owned(), set);
            table.chains.insert(guard::UNKNOWN.to_owned(), chain);
        }
        Planner {
            settings,
            slice: NodeSlice::default(),
            attachments: Attachments::new(),
            edited: Edited::new(table),
            ports: Ports::default(),
            bridge: None,
            bridge_taken: None,
            bridge_made: false,
            layouts: BTreeMap::new(),
            closed: BTreeSet::new(),
            peers: PeerSets::default(),
            port_set_users: BTreeMap::new(),
            dispatch: BTreeMap::new(),
            claims: BTreeMap::new(),
            pods_of: BTreeMap::new(),
            told: Told::default(),
        }
    }

    /// All tables that the slice makes: some of [`TABLES`].
    pub fn tables(&self) -> Vec<&Table> {
        [Some(self.table()), self.bridge.as_ref()].into_iter().flatten().collect()
    }

    /// The table `inet weir`, in which are all verdicts of policies.
    pub fn table(&self) -> &Table {
        self.edited.table()
    }

    /// The slice.
    pub fn slice(&self) -> &NodeSlice {
        &self.slice
    }

    /// From now on, isolated pods drop TCP that is new without SYN (U27), or judge it as if it had one.
    pub fn drop_mid_stream(&mut self, drop: bool) {
        let drop = drop && !self.settings.audit;
        if std::mem::replace(&mut self.settings.drop_mid_stream, drop) == drop {
            return;
        }
        let rulesets: Vec<RulesetId> = self.layouts.keys().copied().collect();
        rulesets.into_iter().for_each(|id| self.put_ruleset(id));
    }

    /// From now on, what looks like a pod and is none that is known is closed, or open.
    pub fn close_unknown(&mut self, close: bool) {
        let close = close && !self.settings.audit;
        if std::mem::replace(&mut self.settings.close_unknown, close) == close {
            return;
        }
        self.ports.unknown.clear();
        self.ports.unknown_own.clear();
        if close {
            let (set, chain) = guard::unknown();
            self.edited.put_set(guard::UNKNOWN, set);
            self.edited.put_chain(guard::UNKNOWN, chain);
        } else {
            self.edited.remove_chain(guard::UNKNOWN);
            self.edited.remove_set(guard::UNKNOWN);
        }
        self.make_bridge();
    }

    /// Takes changes of the slice.
    pub fn update<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        let mut pods = BTreeSet::new();
        for change in changes {
            self.change(change, &mut pods);
        }
        if !pods.is_empty() {
            self.make_bridge();
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

    /// Takes what is known of ports of bridges.
    pub fn ports(&mut self, ports: Ports) {
        if self.settings.close_unknown {
            let (before, after) = (&self.ports.unknown_own, &ports.unknown_own);
            for gone in before.difference(after) {
                self.edited.remove_element(guard::UNKNOWN, interface_key(gone));
            }
            for new in after.difference(before) {
                self.edited.put_element(guard::UNKNOWN, interface_key(new), Element::default());
            }
        }
        self.ports = ports;
        self.make_bridge();
    }

    fn make_bridge(&mut self) {
        let ports = (!self.settings.audit).then_some(&self.ports);
        self.bridge = ports.and_then(|ports| bridge::table(&self.slice, ports, self.settings));
        self.bridge_made = true;
    }

    /// What must change in a kernel that has the tables of when this was last called, in one batch.
    pub fn take(&mut self) -> Vec<Transaction> {
        let mut all: Vec<Transaction> = self.edited.take().into_iter().collect();
        if std::mem::take(&mut self.bridge_made) {
            all.extend(differences(self.bridge_taken.as_slice(), &self.bridge.iter().collect::<Vec<_>>()));
            self.bridge_taken.clone_from(&self.bridge);
        }
        all
    }

    fn change(&mut self, change: &Change, pods: &mut BTreeSet<ObjectKey>) {
        // while what goes is still known
        match change {
            Change::RulesetGone(id) => {
                self.remove_ruleset(*id);
                self.closed.remove(id);
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

    /// The kernel refuses a chain, set or map of this name: the rulesets that it is part of drop
    /// everything until [`reopen`](Planner::reopen), so that all others can be in force. Returns the
    /// policies concerned; none: it is of no ruleset, or of one that is closed already. If it is a chain that tells
    /// of allowed connections, nothing is told of them until then.
    pub fn close(&mut self, name: &str) -> BTreeSet<ObjectKey> {
        if told::parts(name).is_some() {
            self.tell_allowed(false);
            return BTreeSet::new();
        }
        let of = |(_, layout): &(&RulesetId, &Layout)| layout.has(&self.slice, name);
        let refused = self.layouts.iter().filter(of).map(|(id, _)| *id);
        let refused: Vec<RulesetId> = refused.filter(|id| !self.closed.contains(id)).collect();
        self.closed.extend(&refused);
        refused.iter().for_each(|id| self.put_ruleset(*id));
        let concerned = |profile: &&Profile| {
            let of = |direction| [profile.ruleset(direction), profile.audited(direction)];
            Direction::BOTH.into_iter().flat_map(of).flatten().any(|id| refused.contains(&id))
        };
        let profiles = self.slice.profiles.values().filter(concerned);
        profiles.flat_map(|profile| self.slice.policies_of(profile)).cloned().collect()
    }

    /// Writes the rulesets that were closed as they should be: the kernel may take them now.
    /// Returns whether there are any.
    pub fn reopen(&mut self) -> bool {
        let closed = std::mem::take(&mut self.closed);
        closed.iter().for_each(|id| self.put_ruleset(*id));
        self.tell_allowed(true);
        !closed.is_empty()
    }

    fn tell_allowed(&mut self, tell: bool) {
        if std::mem::replace(&mut self.told.quiet, !tell) == tell {
            let concerned = self.slice.pods.iter().filter(|(_, pod)| pod.log_allowed > 0);
            self.dispatch(concerned.map(|(key, _)| key.clone()).collect());
        }
    }

    /// Peer sets and port sets are in the table for as long as a ruleset's chains name them.
    fn put_ruleset(&mut self, id: RulesetId) {
        self.remove_ruleset(id);
        let ruleset = &self.slice.rulesets[&id];
        match ruleset.effect {
            Effect::Enforce => {}
            Effect::WouldDeny if self.settings.log_denials.is_some() => {}
            // nobody is told
            Effect::WouldDeny | Effect::WouldAllow => return,
        }
        let mut layout = match self.closed.contains(&id) {
            true => closed(id, ruleset, &self.settings),
            false => layout(&self.slice, id, ruleset, &self.settings),
        };
        for union in &layout.peers {
            self.peers.retain(&self.slice, union, &mut self.edited);
        }
        for port_set in &layout.ports {
            let users = self.port_set_users.entry(*port_set).or_default();
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
            let users = self.port_set_users.get_mut(port_set).expect("the ruleset is counted");
            *users -= 1;
            if *users == 0 {
                self.port_set_users.remove(port_set);
                let sets = port_sets(*port_set, &self.slice.port_sets[port_set]);
                sets.keys().for_each(|name| self.edited.remove_set(name));
            }
        }
    }

    /// Writes the dispatch of these pods anew.
    fn dispatch(&mut self, pods: BTreeSet<ObjectKey>) {
        let mut places = BTreeSet::new();
        for key in pods {
            for (at, element) in self.dispatch.remove(&key).unwrap_or_default() {
                self.told.release(&element, &mut self.edited);
                let claims = self.claims.get_mut(&at).expect("what a pod has, it claims");
                claims.remove(&key);
                if claims.is_empty() {
                    self.claims.remove(&at);
                }
                places.insert(at);
            }
            let mut now = BTreeMap::new();
            if let Some(pod) = self.slice.pods.get(&key) {
                now = self.dispatch_of(&key, pod);
                if self.settings.source_guard {
                    now.extend(guard::elements(&key, pod, &self.attachments));
                }
            }
            for (at, element) in &now {
                self.told.retain(element, self.settings.log_denials.as_ref(), &mut self.edited);
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

    /// The chain that judges the pods with this profile, or tells what it would be.
    fn chain_of(&self, profile: &Profile, direction: Direction) -> Option<String> {
        let audited = || {
            let told = |id: &RulesetId| self.layouts.contains_key(id);
            profile.audited(direction).filter(told).map(|id| chain_name(id, direction, true))
        };
        let enforced = profile.ruleset(direction);
        enforced.map(|id| chain_name(id, direction, self.settings.audit)).or_else(audited)
    }

    fn dispatch_of(&self, key: &ObjectKey, pod: &SlicePod) -> BTreeMap<At, Element> {
        let mut elements = BTreeMap::new();
        let profile = &self.slice.profiles[&pod.profile];
        let comment = Some(comment(&key.to_string()));
        let mut isolated = false;
        let tells = self.settings.log_denials.is_some() && !self.told.quiet;
        let log_allowed = if tells { pod.log_allowed } else { 0 };
        for direction in Direction::BOTH {
            let chain = self.chain_of(profile, direction);
            isolated |= chain.is_some();
            let Some(chain) = told::way(chain, direction, log_allowed) else { continue };
            let verdict = Verdict::Jump(chain);
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
        if !isolated {
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
pub(crate) fn interface_key(name: &str) -> Bytes {
    let mut key = Bytes::from_elem(0, Field::IfName.len());
    let len = name.len().min(Field::IfName.len() - 1);
    key[..len].copy_from_slice(&name.as_bytes()[..len]);
    key
}

/// A comment of at most 127 bytes, which end with the name: a cut one starts with "..".
pub(crate) fn comment(text: &str) -> String {
    const MAX: usize = 127;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let from = (text.len() - (MAX - 2)..).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("..{}", &text[from..])
}

/// The table of a node without pods.
fn empty_table(settings: Settings) -> Table {
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
    let revoked = settings.revoked_mark.map(|bits| Match::default().ct_mark(bits.get()).then(Verdict::Drop));
    let mut first: Vec<Rule> = revoked.into_iter().collect();
    first.extend([
        Match::default().ct_state(ESTABLISHED | RELATED).then(Verdict::Accept), // N90, N93
        // N92: neighbour discovery and multicast listeners
        // of this link, which their hop limits prove: who routes a packet takes one off
        Match::default().hop_limit(255).icmpv6_type(133, 137).then(Verdict::Accept),
        Match::default().hop_limit(1).icmpv6_type(130, 132).then(Verdict::Accept),
        Match::default().hop_limit(1).icmpv6_type(143, 143).then(Verdict::Accept),
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
    let judged = from_pod.iter().filter(|_| settings.own_node == PodToOwnNode::Enforce);
    let input = Chain { hook: hook(HookPoint::Input), rules: first.iter().chain(judged).cloned().collect() };
    for family in IpFamily::BOTH {
        first.push(Match::default().hairpin_in(family, &hairpin(family)).then(Verdict::Accept));
    }
    let rules = first.into_iter().chain(from_pod).chain(to_pod).collect();
    let forward = Chain { hook: hook(HookPoint::Forward), rules };
    let chains = [("forward".to_owned(), forward), ("input".to_owned(), input)].into();
    Table { family: Family::Inet, name: TABLE.to_owned(), sets, chains }
}
