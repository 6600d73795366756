//! Manifests as they are applied: workloads and no pods, from several places.

mod common;

use common::{folder, weir, weir_reads};

const MANIFESTS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{ports: [{containerPort: 8080, name: http}]}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {namespace: shop, name: db}
spec: {replicas: 2, template: {metadata: {labels: {app: db}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: db-0}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
";

#[test]
fn pods_stand_in_for_workloads_that_have_none() {
    let dir = folder(MANIFESTS);
    let run = weir(dir.path(), &["can", "shop/web-1", "shop/db-0:5432", "-f", "."]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(
        run.err,
        "weir: note: no pods of it in the manifests, judged by its template: Deployment shop/web, StatefulSet shop/db\n"
    );
    assert_eq!(weir(dir.path(), &["can", "shop/db-1", "shop/db-0:5432", "-f", "."]).code, Some(1));
    assert_eq!(weir(dir.path(), &["can", "shop/web-1", "shop/web-2:http", "-f", "."]).code, Some(0));
}

#[test]
fn where_there_are_pods_of_a_workload_none_are_made() {
    let pods = "\
---
apiVersion: v1
kind: Pod
metadata:
  {namespace: shop, name: web-7d9f-x, labels: {app: web, pod-template-hash: 7d9f},
   ownerReferences: [{kind: ReplicaSet, name: web-7d9f, controller: true}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: by-hand, labels: {app: db}}
";
    let dir = folder(&format!("{MANIFESTS}{pods}"));
    let rows = weir(dir.path(), &["can", "--all", "--port", "80", "-f", ".", "-o", "json"]);
    let json = rows.json();
    let mut names: Vec<&str> = json.as_array().unwrap().iter().map(|r| r["from"].as_str().unwrap()).collect();
    names.dedup();
    // a StatefulSet without a selector takes nobody in
    assert_eq!(names, ["shop/by-hand", "shop/db-0", "shop/db-1", "shop/web-7d9f-x"]);
}

#[test]
fn a_template_that_cannot_be_read_is_named_and_the_rest_counts() {
    let wrong = MANIFESTS.replace("containerPort: 8080", "containerPort: eighty");
    let dir = folder(&wrong);
    let run = weir(dir.path(), &["can", "shop/db-1", "shop/db-0:5432", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let warning = "weir: warning: m.yaml:11: Deployment shop/web, pod template: spec.containers[0].ports[0].containerPort: \
                   found the text \"eighty\", expected a whole number; it is left out\n   |\n11 | ...abels: {app: web}}";
    assert_eq!(run.err.matches("warning").count(), 1, "{}", run.err);
    assert!(run.err.contains(warning), "{}", run.err);
    let (line, marks) = (run.err.lines().nth(2).unwrap(), run.err.lines().nth(3).unwrap());
    assert_eq!(line.find("containerPort"), marks.find("^^^^^^^^^^^^^"), "{}", run.err);
}

#[test]
fn files_folders_and_standard_input_go_together() {
    let dir = folder(MANIFESTS);
    let pod = "kind: Pod\napiVersion: v1\nmetadata: {namespace: shop, name: new, labels: {app: web}}\n---\nkind: [\n";
    let args = ["can", "shop/new", "shop/db-0:80", "-f", "m.yaml", "-f", "-"];
    let run = weir_reads(dir.path(), &args, pod);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.err.contains("weir: warning: <stdin>:"), "{}", run.err);
    assert!(run.err.contains(" | kind: [\n"), "{}", run.err);
    for clash in ["--context", "--kubeconfig"] {
        assert_eq!(weir(dir.path(), &["can", "a", "b", "-f", ".", clash, "x"]).code, Some(2), "{clash}");
    }
}

#[test]
fn a_snapshot_of_manifests_says_what_they_say() {
    let dir = folder(MANIFESTS);
    let snapshot = weir(dir.path(), &["snapshot", "-f", "m.yaml"]);
    assert_eq!(snapshot.code, Some(0), "{snapshot:?}");
    assert!(snapshot.out.starts_with("# weir snapshot"), "{}", snapshot.out);
    let ask = ["can", "--all", "--port", "80", "-f", "-"];
    let (one, other) = (weir_reads(dir.path(), &ask, MANIFESTS), weir_reads(dir.path(), &ask, &snapshot.out));
    assert_eq!((one.code, &one.out, &one.err), (other.code, &other.out, &other.err));
    assert!(one.out.lines().count() > 4 && one.out.contains("yes") && one.out.contains("no"), "{}", one.out);
    assert_eq!(weir_reads(dir.path(), &["snapshot", "-f", "-"], "kind: ConfigMap\n").code, Some(2));
}
