//! Reading: what is understood, what is not, and what is said about it.

use std::path::{Path, PathBuf};

use weir_compiler::object::{Event, Namespace, Pod, Policy};

use super::{Loaded, read};

mod follow;

pub(super) fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    std::fs::write(&path, text).expect("write");
    path
}

fn read_one(text: &str) -> Loaded {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), "a.yaml", text);
    read(&[dir.path().to_owned()])
}

fn problems(loaded: &Loaded) -> Vec<String> {
    let relative = |problem: &crate::Problem| {
        let text = problem.to_string();
        match &problem.place {
            Some(place) => {
                let folder = place.file.parent().expect("parent").display().to_string() + "/";
                text.replace(&folder, "")
            }
            None => text,
        }
    };
    loaded.problems.iter().map(relative).collect()
}

fn policies(loaded: &Loaded) -> Vec<&Policy> {
    loaded
        .events
        .iter()
        .filter_map(|e| if let Event::Policy(policy) = e { Some(policy) } else { None })
        .collect()
}

fn pods(loaded: &Loaded) -> Vec<&Pod> {
    loaded.events.iter().filter_map(|e| if let Event::Pod(pod) = e { Some(pod) } else { None }).collect()
}

/// As `kubectl get namespaces,pods,networkpolicies -A -o yaml` prints it, cut down a little.
const KUBECTL_YAML: &str = r#"apiVersion: v1
items:
- apiVersion: v1
  kind: Namespace
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}
    creationTimestamp: "2026-11-20T10:00:00Z"
    labels:
      kubernetes.io/metadata.name: shop
      team: a
    name: shop
    resourceVersion: "12"
    uid: 1f0e
  spec:
    finalizers:
    - kubernetes
  status:
    phase: Active
- apiVersion: v1
  kind: Pod
  metadata:
    creationTimestamp: "2026-11-20T10:00:00Z"
    generateName: web-
    labels:
      app: web
      version: "1"
    name: web-x
    namespace: shop
    ownerReferences:
    - apiVersion: apps/v1
      kind: ReplicaSet
      name: web
    uid: 2f0e
  spec:
    containers:
    - image: nginx
      name: web
      env:
      - {name: A, value: "1"}
      ports:
      - containerPort: 8080
        name: http
        protocol: TCP
      - containerPort: 9090
        protocol: TCP
    initContainers:
    - image: proxy
      name: proxy
      restartPolicy: Always
      ports:
      - containerPort: 5353
        name: dns
        protocol: UDP
    - image: setup
      name: setup
      ports:
      - containerPort: 1
        name: setup
    nodeName: node1
    tolerations:
    - {operator: Exists}
  status:
    conditions:
    - {type: Ready, status: "True"}
    hostIP: 192.0.2.1
    phase: Running
    podIP: 10.0.1.5
    podIPs:
    - ip: 10.0.1.5
    - ip: fd00:1::5
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    name: web
    namespace: shop
  spec:
    ingress:
    - from:
      - podSelector:
          matchLabels:
            app: front
      ports:
      - port: 8080
        protocol: TCP
      - port: dns
        protocol: UDP
    podSelector:
      matchLabels:
        app: web
    policyTypes:
    - Ingress
kind: List
metadata:
  resourceVersion: ""
"#;

#[test]
fn kubectl_lists_in_yaml() {
    let loaded = read_one(KUBECTL_YAML);
    assert_eq!(problems(&loaded), [""; 0]);
    let [Event::Namespace(namespace), Event::Pod(pod), Event::Policy(policy)] = &loaded.events[..] else {
        panic!("{:?}", loaded.events)
    };
    assert_eq!(
        (namespace.name.as_str(), namespace.labels["team"].as_str(), namespace.terminating),
        ("shop", "a", false)
    );
    assert_eq!(
        (pod.key.to_string().as_str(), pod.uid.as_str(), pod.node.as_deref()),
        ("shop/web-x", "2f0e", Some("node1"))
    );
    assert_eq!(pod.ips, ["10.0.1.5".parse::<std::net::IpAddr>().unwrap(), "fd00:1::5".parse().unwrap()]);
    assert_eq!(pod.labels["version"], "1");
    assert_eq!(
        (pod.created, pod.finished, pod.terminating, pod.host_network),
        (1_795_168_800, false, false, false)
    );
    let ports: Vec<_> = pod.ports.iter().map(|p| format!("{} {}/{}", p.name, p.port, p.protocol)).collect();
    assert_eq!(ports, ["http 8080/TCP", "dns 5353/UDP"], "N60, U15: sidecars, not other init containers");
    assert_eq!(policy.spec.ingress[0].ports.len(), 2);
    assert!(policy.spec.unknown.is_empty());
    let lines: Vec<_> = loaded.places.iter().map(|place| place.line).collect();
    assert_eq!(lines, [3, 21, 73]);
}

#[test]
fn typed_lists_of_the_api_itself_in_json() {
    let text = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[
        {"metadata":{"name":"a","namespace":"n"},"spec":{"hostNetwork":true,"containers":[]},"status":{"phase":"Succeeded","podIP":"10.0.0.1"}},
        {"metadata":{"name":"b","namespace":"n","deletionTimestamp":"2026-11-20T10:00:00Z"},"status":{}}]}"#;
    let dir = tempfile::tempdir().expect("tempdir");
    let path = write(dir.path(), "pods.json", text);
    write(dir.path(), "notes.txt", "not: [yaml");
    let loaded = read(&[path.clone(), dir.path().to_owned()]);
    assert_eq!(problems(&loaded), [""; 0], "a file that is named twice is read once");
    let pods = pods(&loaded);
    assert_eq!(pods.len(), 2);
    assert!(pods[0].host_network && pods[0].finished && !pods[0].terminating);
    assert_eq!(pods[0].ips.len(), 1, "podIP where there is no podIPs (N74)");
    assert!(pods[1].terminating && pods[1].ips.is_empty());
    assert_eq!(loaded.places[1], crate::Place { file: path.into(), line: 3 });
}

#[test]
fn documents_defaults_and_other_kinds() {
    let loaded = read_one(
        "# only a comment\n---\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all}\nspec: {podSelector: ~, egress: ~}\n",
    );
    assert_eq!(problems(&loaded), [""; 0]);
    assert_eq!(loaded.ignored, 1);
    assert_eq!(pods(&loaded)[0].key.to_string(), "default/p");
    let policy = policies(&loaded)[0];
    assert_eq!(policy.key().to_string(), "default/all");
    assert_eq!(policy.spec, Default::default());
}

#[test]
fn a_policy_that_cannot_be_read_closes_what_it_selects() {
    let loaded = read_one(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: n}\nspec:\n  podSelector:\n    matchLabels: {app: web}\n  ingress:\n  - ports:\n    - port: 80\n    - port: [1]\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n",
    );
    assert_eq!(loaded.events.len(), 2);
    let spec = &policies(&loaded)[0].spec;
    assert_eq!(spec.pod_selector.match_labels["app"], "web");
    assert_eq!(spec.policy_types, ["Ingress", "Egress"]);
    assert!(spec.ingress.is_empty() && spec.egress.is_empty());
    assert_eq!(
        problems(&loaded),
        ["a.yaml:10: NetworkPolicy n/bad: spec.ingress[0].ports[1].port: a port is a number or a name; \
          until it is corrected, the pods that it selects (all of its namespace, if its podSelector cannot be read) \
          are isolated in both directions"]
    );
}

#[test]
fn a_policy_whose_selector_cannot_be_read_closes_its_namespace() {
    for spec in ["{podSelector: [1]}", "[]", "{podSelector: {matchLabels: {a: 1}}}"] {
        let loaded = read_one(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: bad, namespace: n}}\nspec: {spec}\n"
        ));
        let policy = policies(&loaded)[0];
        assert_eq!(policy.key().to_string(), "n/bad");
        assert_eq!(policy.spec.pod_selector, Default::default(), "{spec}");
        assert_eq!(policy.spec.policy_types.len(), 2, "{spec}");
        assert!(
            problems(&loaded)[0].starts_with("a.yaml:4: NetworkPolicy n/bad: spec"),
            "{:?}",
            problems(&loaded)
        );
    }
    // Its metadata are wrong, but not so wrong that nobody knew which one it is.
    let loaded = read_one(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: n, labels: [a]}\nspec: {}\n",
    );
    assert_eq!(policies(&loaded)[0].spec.policy_types.len(), 2);
    assert!(problems(&loaded)[0].starts_with("a.yaml:3: NetworkPolicy n/bad: metadata.labels: "));
}

#[test]
fn what_is_not_supported_is_said() {
    let loaded = read_one(
        "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: old}\n---\n\
         kind: NetworkPolicy\nmetadata: {name: none}\n---\n\
         apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\n---\n\
         just: a mapping\n---\n- a\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: b}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: maybe}\n",
    );
    assert_eq!(loaded.events, []);
    let problems = problems(&loaded);
    let starts = [
        "a.yaml:1: apiVersion extensions/v1beta1 for kind NetworkPolicy is not supported, the object is NOT in force",
        "a.yaml:5: no apiVersion for kind NetworkPolicy is not supported",
        "a.yaml:8: this version of Weir does not enforce ClusterNetworkPolicy",
        "a.yaml:12: no `kind`",
        "a.yaml:14: this is not a Kubernetes object",
        "a.yaml:16: Pod: metadata.name: an object needs a name",
        "a.yaml:23: Pod default/p: spec.hostNetwork: found the text \"maybe\", expected a boolean; it is left out",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for start in starts {
        assert!(problems.iter().any(|problem| problem.starts_with(start)), "{start}\nin {problems:#?}");
    }
}

#[test]
fn addresses_and_ports_that_cannot_be_read_are_left_out_of_their_pod() {
    let loaded = read_one(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - ports:\n    - {name: a, containerPort: 70000}\n    - {name: b, containerPort: 80, protocol: ICMP}\n    - {name: c, containerPort: 80}\nstatus: {podIPs: [{ip: 10.0.0}, {ip: fd00::1}]}\n",
    );
    assert_eq!(problems(&loaded).len(), 3);
    let pod = pods(&loaded)[0];
    assert_eq!((pod.ips.len(), pod.ports.len()), (1, 1));
}

#[test]
fn old_booleans_are_names_where_names_are_wanted() {
    let loaded = read_one(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: y, namespace: n, labels: {on: yes}}\nspec: {hostNetwork: yes}\n",
    );
    assert_eq!(problems(&loaded), [""; 0]);
    let pod = pods(&loaded)[0];
    assert_eq!(
        (pod.key.to_string().as_str(), pod.labels["on"].as_str(), pod.host_network),
        ("n/y", "yes", true)
    );
}

#[test]
fn a_namespace_says_whether_allowed_connections_are_logged() {
    let namespace = |value: &str| {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: n\n  annotations:\n    other: x\n    weir.dev/log-allowed: {value}\n"
        );
        write(dir.path(), "a.yaml", &text);
        let loaded = read(&[dir.path().to_owned()]);
        let [Event::Namespace(Namespace { log_allowed, .. })] = &loaded.events[..] else {
            panic!("{loaded:?}")
        };
        (*log_allowed, loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(namespace("'true'"), (1, vec![]));
    assert_eq!(namespace("1/100"), (100, vec![]));
    assert_eq!(namespace("~"), (0, vec![]));
    for (value, why) in
        [("'yes'", "\"yes\" is neither"), ("true", "in quotes"), ("[1]", "in quotes"), ("2/3", "neither")]
    {
        let (log_allowed, problems) = namespace(value);
        let [problem] = &problems[..] else { panic!("{value}: {problems:?}") };
        let place = "a.yaml:7: Namespace n: metadata.annotations[weir.dev/log-allowed]: ";
        assert!(log_allowed == 0 && problem.contains(place) && problem.contains(why), "{problem}");
    }
}

#[test]
fn the_first_of_two_counts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let namespace = |label: &str| {
        format!("\napiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{l: {label}}}}}\n")
    };
    write(dir.path(), "b.yaml", &namespace("second"));
    write(dir.path(), "a/x.yml", &format!("{}---{}", namespace("first"), namespace("inner")));
    write(dir.path(), ".hidden.yaml", &namespace("hidden"));
    write(dir.path(), ".git/x.yaml", &namespace("hidden"));
    let loaded = read(&[dir.path().to_owned()]);
    let [Event::Namespace(Namespace { labels, .. })] = &loaded.events[..] else {
        panic!("{:?}", loaded.events)
    };
    assert_eq!(labels["l"], "first");
    assert_eq!(loaded.problems.len(), 2);
    let texts: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
    let (first, second) = (dir.path().join("a/x.yml"), dir.path().join("b.yaml"));
    assert!(
        texts[0].starts_with(&format!(
            "{}:6: Namespace n: is there twice in this file, first in line 2",
            first.display()
        )),
        "{texts:?}"
    );
    assert!(
        texts[1].starts_with(&format!(
            "{}:2: Namespace n: is also in {}:2",
            second.display(),
            first.display()
        )),
        "{texts:?}"
    );
}

#[test]
fn what_is_missing_or_broken_is_said_and_the_rest_is_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), "a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n");
    write(dir.path(), "b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n");
    std::fs::write(dir.path().join("c.yaml"), b"a: \xff\xfe").expect("write");
    let loaded = read(&[dir.path().to_owned(), dir.path().join("missing")]);
    assert_eq!(loaded.events.len(), 2);
    let problems = problems(&loaded);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("missing: cannot be read: ")), "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("a.yaml:6: not readable as YAML or JSON: ") || p.starts_with("a.yaml:5: ")), "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("c.yaml")), "{problems:?}");
}

#[test]
fn large_clusters_fit_into_one_file() {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for i in 0..5_000 {
        text.push_str(&format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata: {{name: p{i}, namespace: n, labels: {{app: a, i: \"{i}\"}}}}\n  spec: {{nodeName: n1, containers: [{{name: c, image: i}}]}}\n  status: {{phase: Running, podIPs: [{{ip: 10.0.{}.{}}}]}}\n",
            i / 256 % 256, i % 256
        ));
    }
    for i in 0..2_000 {
        text.push_str(&format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: n{i}}}\n"));
    }
    let begin = std::time::Instant::now();
    let loaded = read_one(&text);
    println!("{} bytes in {:?}", text.len(), begin.elapsed());
    assert_eq!(problems(&loaded), [""; 0]);
    assert_eq!(loaded.events.len(), 7_000);
}
