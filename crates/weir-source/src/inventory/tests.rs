//! Reading once.

use super::keep::{json, keep};
use super::*;
use weir_compiler::object::Protocol;

fn read_text(text: &str) -> Inventory {
    read(&[PathBuf::from("-")], Some(text.as_bytes()), true)
}

const WORKLOADS: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {secret: annotation}}
    spec:
      nodeSelector: {kubernetes.io/os: windows, secret: node}
      containers:
      - {name: c, image: secret, env: [{name: P, value: secret}], ports: [{containerPort: 80}, {name: x, containerPort: 81}]}
      volumes: [{name: secret}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {namespace: shop, name: tidy}
spec:
  jobTemplate:
    spec: {template: {metadata: {labels: {app: tidy}}, spec: {hostNetwork: true}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {namespace: shop, name: db}
spec: {replicas: 2, template: {metadata: {labels: {app: db}}}}
---
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: old}
---
kind: ServiceList
apiVersion: v1
items:
- metadata: {namespace: shop, name: web}
  spec:
    clusterIP: 10.96.0.7
    selector: {app: web}
    ports: [{port: 80, targetPort: x}, {name: n, port: 53, protocol: UDP, targetPort: 5353, nodePort: 30053}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: false}, targetRef: {kind: Pod, name: web-0}}
ports: [{name: '', port: 81, protocol: TCP}]
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {kubernetes.io/os: windows, secret: label}}
spec: {podCIDRs: [10.0.0.0/24]}
status: {addresses: [{type: InternalIP, address: 172.16.0.1}, {type: Hostname, address: n1}]}
";

#[test]
fn what_is_read_besides_namespaces_pods_and_policies() {
    let found = read_text(WORKLOADS);
    assert_eq!((found.problems, found.events, found.ignored), (Vec::new(), Vec::new(), 1));
    let kinds: Vec<_> = found.workloads.iter().map(|w| (w.kind.as_str(), w.replicas, w.place.line)).collect();
    assert_eq!(kinds, [("Deployment", Some(3), 1), ("CronJob", None, 15), ("StatefulSet", Some(2), 22)]);
    let service = &found.services[&ObjectKey::new("shop", "web")];
    assert_eq!(service.cluster_ips, ["10.96.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(service.ports[0].target, TargetPort::Name("x".into()));
    let second = &service.ports[1];
    assert_eq!(
        (second.protocol, second.port, &second.target, second.node_port),
        (Protocol::Udp, 53, &TargetPort::Number(5353), Some(30053))
    );
    let [slice] = &found.endpoint_slices[..] else { panic!("{:?}", found.endpoint_slices) };
    assert_eq!(slice.service, service.key);
    assert!(!slice.backends[0].ready);
    assert_eq!(slice.backends[0].pod, Some(ObjectKey::new("shop", "web-0")));
    let node = &found.nodes["n1"];
    assert_eq!((node.addresses.len(), node.pod_cidrs.len(), node.windows), (1, 1, true));
}

#[test]
fn workloads_without_pods_have_stand_ins() {
    let found = read_text(WORKLOADS);
    let names = |i: usize, taken: &str| -> Vec<String> {
        let all = found.workloads[i].stand_ins(|name| name == taken);
        all.into_iter().map(|s| s.expect("readable").pod.key.name).collect()
    };
    assert_eq!(names(0, ""), ["web-1", "web-2"]);
    assert_eq!(names(0, "web-1"), ["web-1-1", "web-2"]);
    assert_eq!(names(1, ""), ["tidy"]);
    assert_eq!(names(2, ""), ["db-0", "db-1"]);
    let web = found.workloads[0].stand_ins(|_| false).remove(0).expect("readable");
    assert_eq!(web.pod.labels["app"], "web");
    assert_eq!(web.pod.ports.len(), 1, "named ones");
    assert_eq!(web.details.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80, 81]);
    assert!(web.details.windows);
    let db = found.workloads[2].stand_ins(|_| false).remove(1).expect("readable");
    assert_eq!(db.pod.labels["statefulset.kubernetes.io/pod-name"], "db-1");
    assert!(found.workloads[1].stand_ins(|_| false)[0].as_ref().is_ok_and(|s| s.pod.host_network));
}

#[test]
fn a_snapshot_has_what_is_in_use_and_says_the_same() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, annotations: {a: secret}, \
               creationTimestamp: '2026-11-20T10:00:00Z', ownerReferences: [{kind: ReplicaSet, name: r, uid: secret, \
               controller: true}]}\nspec: {serviceAccountName: robot, nodeName: n1, containers: [{name: secret, image: \
               secret, env: [{name: A, value: secret}], ports: [{containerPort: 80, name: http}]}]}\nstatus: \
               {phase: Running, podIP: 10.0.0.1, message: secret, conditions: [{type: Ready, status: 'True', reason: \
               secret}, {type: Secret, status: 'True'}]}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
               metadata: {name: p, namespace: n, annotations: {a: secret, weir.dev/audit: \"true\"}}\nspec: {podSelector: {}, \
               ingress: [{}]}\n";
    let first = read_text(&format!("{WORKLOADS}{pod}"));
    let kept: Vec<String> = first.kept.iter().map(|tree| json(tree).to_string()).collect();
    assert_eq!(kept.len(), 8);
    for object in &kept {
        assert!(!object.to_ascii_lowercase().contains("secret"), "{object}");
    }
    let text: String = kept.iter().map(|object| format!("--- {object}\n")).collect();
    let second = read_text(&format!("# weir snapshot\n{text}"));
    assert_eq!(second.problems, []);
    assert_eq!(first.events, second.events);
    assert!(
        kept.iter().any(|object| object.contains(r#""annotations":{"weir.dev/audit":"true"}"#)),
        "{kept:?}"
    );
    assert_eq!(first.pods, second.pods);
    assert!(first.pods[&ObjectKey::new("n", "p")].ready);
    assert_eq!(first.services, second.services);
    assert_eq!(first.endpoint_slices, second.endpoint_slices);
    assert_eq!(first.nodes, second.nodes);
    let again: Vec<String> = second.kept.iter().map(|tree| json(tree).to_string()).collect();
    assert_eq!(kept, again);
}

#[test]
fn what_is_there_twice_counts_once() {
    let found = read_text(&format!("{WORKLOADS}---\n{WORKLOADS}"));
    let told: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(told[0].ends_with(
        "Deployment shop/web is there twice in this file, first in line 1, which is the one that counts"
    ));
    assert_eq!((found.workloads.len(), found.kept.len()), (3, 6));
}

#[test]
fn odd_forms_are_no_panic() {
    for text in [
        "spec: 7",
        "spec: {template: 7}",
        "spec: {ports: [7]}",
        "endpoints: {a: b}",
        "metadata: 7",
        "items: 7",
    ] {
        for kind in [
            "apps/v1, kind: Deployment",
            "v1, kind: Service",
            "discovery.k8s.io/v1, kind: EndpointSlice",
            "v1, kind: Node",
            "v1, kind: ServiceList",
        ] {
            let odd = format!("{{apiVersion: {kind}, metadata: {{name: x}}, {text}}}");
            let found = read_text(&odd);
            found.workloads.iter().for_each(|w| drop(w.stand_ins(|_| false)));
            let tree = crate::tree::Tree { line: 1, value: crate::tree::Value::Null };
            keep(super::keep::What::Core(crate::Kind::Pod), &tree);
        }
    }
}
