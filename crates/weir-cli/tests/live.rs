//! Asking an API server: here one of a few lines, on a port of this machine.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;

use common::weir;
use serde_json::{Value, json};

/// What the server answers to a path with its query: a status and a body.
type Answers = dyn Fn(&str) -> (u16, Value) + Send + Sync;

/// Serves until the test ends, and writes a kubeconfig that leads there.
fn server(answers: Arc<Answers>) -> tempfile::TempDir {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let answers = answers.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
                while let Some(Ok(first)) = lines.next() {
                    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                    let (status, body) = answers(&path);
                    let body = match body {
                        Value::String(text) => text,
                        json => json.to_string(),
                    };
                    let head = format!(
                        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    if stream.write_all((head + &body).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let dir = tempfile::tempdir().expect("a folder");
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "preferences": {},
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}]});
    std::fs::write(dir.path().join("config"), kubeconfig.to_string()).expect("written");
    dir
}

fn forbidden() -> (u16, Value) {
    (
        403,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "you may not", "code": 403}),
    )
}

fn list(items: Value) -> (u16, Value) {
    (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn pod(namespace: &str, name: &str, ip: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name, "labels": {"app": name}, "annotations": {"a": "SECRET"}},
        "spec": {"nodeName": "n1", "containers": [{"image": "SECRET", "env": [{"name": "A", "value": "SECRET"}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})
}

fn policies() -> Value {
    json!([{"metadata": {"namespace": "shop", "name": "db"}, "spec": {"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}}])
}

#[test]
fn lists_are_read_page_by_page() {
    let server = server(Arc::new(|path| match path.split('?').next().unwrap_or_default() {
        "/api/v1/namespaces" => list(json!([{"metadata": {"name": "shop"}}])),
        "/api/v1/pods" if path.contains("continue=more") => list(json!([pod("shop", "db", "10.0.0.2")])),
        "/api/v1/pods" => (
            200,
            json!({"metadata": {"continue": "more"}, "items": [pod("shop", "web", "10.0.0.1"), pod("ops", "x", "10.0.0.3")]}),
        ),
        "/apis/networking.k8s.io/v1/networkpolicies" => list(policies()),
        "/api/v1/nodes" => list(json!([{"metadata": {"name": "n1"}}])),
        _ => (404, json!({"kind": "Status", "status": "Failure", "message": "not found", "code": 404})),
    }));
    // names are of the context's namespace
    let run = weir(server.path(), &["can", "web", "db:80", "--kubeconfig", "config"]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{run:?}");
    let run = weir(server.path(), &["can", "x", "shop/db:80", "--kubeconfig", "config", "-n", "ops"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(!run.out.contains("db.yaml") && run.out.contains("    shop/db  ingress[0]\n"), "{run:?}");

    let run = weir(server.path(), &["snapshot", "--kubeconfig", "config", "-o", "cluster.yaml"]);
    assert_eq!((run.code, run.out.as_str()), (Some(0), ""), "{run:?}");
    let text = std::fs::read_to_string(server.path().join("cluster.yaml")).expect("written");
    assert!(!text.contains("SECRET"), "{text}");
    let run = weir(server.path(), &["can", "ops/x", "shop/db:80", "-f", "cluster.yaml"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let expected = "    shop/db  ingress[0]  cluster.yaml:4\n";
    assert!(run.out.contains(expected), "{}\n{text}", run.out);
}

#[test]
fn a_user_of_one_namespace_is_told_what_is_not_seen() {
    let server = server(Arc::new(|path| match path.split('?').next().unwrap_or_default() {
        "/api/v1/namespaces/shop/pods" => {
            list(json!([pod("shop", "web", "10.0.0.1"), pod("shop", "db", "10.0.0.2")]))
        }
        "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies" => list(policies()),
        _ => forbidden(),
    }));
    let run = weir(server.path(), &["can", "web", "db:80", "--kubeconfig", "config"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    for told in [
        "note: you may not list namespaces: their labels are not seen",
        "note: you may list pods in namespace shop only",
        "note: you may list networkpolicies.networking.k8s.io in namespace shop only",
    ] {
        assert!(run.err.contains(told), "{told}: {}", run.err);
    }
    let run = weir(server.path(), &["can", "web", "db:80", "--kubeconfig", "config", "-n", "ops"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(
        run.err.contains("pods may not be listed, in all namespaces or in ops (you may not)"),
        "{}",
        run.err
    );
}

#[test]
fn what_keeps_from_an_answer_is_said_in_one_line() {
    let unauthorized = server(Arc::new(|_| {
        (401, json!({"kind": "Status", "status": "Failure", "message": "Unauthorized", "code": 401}))
    }));
    let run = weir(unauthorized.path(), &["can", "a", "b", "--kubeconfig", "config"]);
    assert_eq!((run.code, run.err.lines().count()), (Some(2), 1), "{run:?}");
    assert!(run.err.contains("Unauthorized: check the credentials in the kubeconfig"), "{}", run.err);
    let run = weir(unauthorized.path(), &["can", "a", "b", "--kubeconfig", "none"]);
    assert_eq!((run.code, run.err.lines().count()), (Some(2), 1), "{run:?}");
    assert!(run.err.contains("kubeconfig none"), "{}", run.err);
    let run = weir(unauthorized.path(), &["can", "a", "b", "--kubeconfig", "config", "--context", "other"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.err.contains("other"), "{}", run.err);
}

/// Two lines of one agent and one of another, and what is not one.
fn log(path: &str) -> (u16, Value) {
    let line = |time: &str, from: &str, to: &str, port: u16, more: &str| {
        format!(
            r#"{{"time":"2026-11-21T18:0{time}Z","verdict":"denied","node":"n1","direction":"ingress","from":{from},"to":{to},"protocol":"TCP","policies":["shop/db","shop/\u001b[31m"]{more}}}"#
        )
        .replace("PORT", &port.to_string())
    };
    let (db, web) =
        (r#"{"pod":"shop/db","address":"10.0.0.2","port":PORT}"#, r#"{"address":"10.0.0.1","port":4000}"#);
    let text = match path {
        "/api/v1/namespaces/weir-system/pods/agent-1/log" => [
            "2026-11-21T18:00:00Z  INFO weir_agent: ready".to_owned(),
            line("1:00.000", web, db, 80, ""),
            r#"{"time":"2026-11-21T18:01:30.000Z","verdict":"something else"}"#.to_owned(),
            line("3:00.000", r#"{"address":"203.0.113.9","port":4000}"#, db, 81, r#","suppressed":7"#),
        ]
        .join("\n"),
        "/api/v1/namespaces/weir-system/pods/agent-2/log" => line(
            "2:00.000",
            r#"{"pod":"ops/x","address":"10.0.0.3"}"#,
            r#"{"address":"10.0.0.1","port":9}"#,
            0,
            "",
        ),
        _ => {
            return (
                404,
                json!({"kind": "Status", "status": "Failure", "message": "not found", "code": 404}),
            );
        }
    };
    (200, Value::String(text + "\n"))
}

#[test]
fn logs_are_those_of_all_agents_with_the_names_of_now() {
    let server = server(Arc::new(|path| match path.split('?').next().unwrap_or_default() {
        "/api/v1/namespaces/weir-system/pods" => list(json!([
            pod("weir-system", "agent-1", "10.9.0.1"),
            pod("weir-system", "agent-2", "10.9.0.2")
        ])),
        "/api/v1/pods" => list(json!([pod("shop", "web", "10.0.0.1"), pod("shop", "db", "10.0.0.2")])),
        "/api/v1/namespaces" => list(json!([])),
        "/apis/networking.k8s.io/v1/networkpolicies" => list(policies()),
        path => log(path),
    }));
    let run = weir(server.path(), &["logs", "--kubeconfig", "config"]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{run:?}");
    let expected = "\
2026-11-21T18:01:00.000Z  denied  shop/web -> shop/db  80/TCP  ingress of shop/db, isolated by shop/db, shop/\\u{1b}[31m  (node n1)
2026-11-21T18:02:00.000Z  denied  ops/x -> shop/web  9/TCP  ingress of shop/web, isolated by shop/db, shop/\\u{1b}[31m  (node n1)
2026-11-21T18:03:00.000Z  denied  203.0.113.9 -> shop/db  81/TCP  ingress of shop/db, isolated by shop/db, shop/\\u{1b}[31m  (node n1, and 7 before that were not told)
";
    assert_eq!(run.out, expected);
    for (filter, lines) in [
        (&["-n", "ops"][..], &[1][..]),
        (&["--pod", "shop/db"], &[0, 2]),
        (&["--pod", "web", "-n", "shop"], &[0, 1]),
        (&["--pod", "web", "-n", "ops"], &[]),
    ] {
        let run = weir(server.path(), &[&["logs", "--kubeconfig", "config"], filter].concat());
        let expected: Vec<&str> = lines.iter().map(|i| expected.lines().nth(*i).expect("a line")).collect();
        assert_eq!(run.out.lines().collect::<Vec<_>>(), expected, "{filter:?}");
    }
    let run = weir(server.path(), &["logs", "--kubeconfig", "config", "-o", "json"]);
    assert_eq!(run.out.lines().count(), 3, "{run:?}");
    assert!(
        run.out.lines().all(|l| serde_json::from_str::<Value>(l).is_ok_and(|l| l["verdict"] == "denied"))
    );
    assert!(!run.out.contains('\x1b'), "{run:?}");

    let run = weir(server.path(), &["logs", "--kubeconfig", "config", "--weir-namespace", "elsewhere"]);
    assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.err.contains("--weir-namespace"), "{run:?}");
    let run = weir(server.path(), &["logs", "--kubeconfig", "config", "--since", "10"]);
    assert!(run.code == Some(2) && run.err.contains("10m"), "{run:?}");
}

/// A cluster whose namespace asks for one of ten allowed connections, or for none.
fn counted(annotation: Option<&'static str>) -> tempfile::TempDir {
    let rules = json!([{"metadata": {"namespace": "shop", "name": "db"}, "spec": {"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}, {"ipBlock": {"cidr": "203.0.113.0/24"}}],
                "ports": [{"port": 5432}, {"port": 80}]},
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 80}]}]}}]);
    let line = |time: &str, verdict: &str, direction: &str, more: &str| {
        let web = r#"{"address":"10.0.0.1","port":4000}"#;
        let db = r#"{"pod":"shop/db","address":"10.0.0.2","port":5432}"#;
        let (from, to) = if direction == "egress" { (db, web) } else { (web, db) };
        format!(
            r#"{{"time":"2026-11-21T18:{time}.000Z","verdict":"{verdict}","node":"n1","direction":"{direction}","from":{from},"to":{to},"protocol":"TCP",{more}}}"#
        )
    };
    let clause = |rule: u32, peer: u32, port: u32, n: u32, sampled: u32| {
        format!(
            r#""isolated":true,"clause":{{"policy":"shop/db","direction":"ingress","rule":{rule},"peer":{peer},"port":{port}}},"connections":{n},"sampled":{sampled}"#
        )
    };
    let text = [
        "2026-11-21T18:00:00.5Z  INFO weir_agent: ready".to_owned(),
        line("01:00", "allowed", "ingress", &clause(0, 0, 0, 1, 10)),
        line("01:10", "allowed", "ingress", &clause(0, 0, 0, 4, 10)),
        line("02:00", "allowed", "ingress", &clause(0, 1, 1, 3, 1)),
        // of a rule that is gone
        line("03:00", "allowed", "ingress", &clause(7, 0, 0, 2, 1)),
        line("04:00", "allowed", "egress", r#""isolated":false,"connections":1,"sampled":10,"others":true"#),
        line("05:00", "denied", "ingress", r#""policies":["shop/db"],"suppressed":6"#),
        line("06:00", "would-deny", "egress", r#""policies":["shop/new"],"suppressed":1"#),
    ]
    .join("\n");
    server(Arc::new(move |path| match path.split('?').next().unwrap_or_default() {
        "/api/v1/namespaces/weir-system/pods" => list(json!([pod("weir-system", "agent-1", "10.9.0.1")])),
        "/api/v1/namespaces/weir-system/pods/agent-1/log" => (200, Value::String(text.clone() + "\n")),
        "/api/v1/pods" => list(json!([pod("shop", "web", "10.0.0.1"), pod("shop", "db", "10.0.0.2")])),
        "/api/v1/namespaces" => {
            let own = annotation.map_or(json!({}), |value| json!({"weir.dev/log-allowed": value}));
            list(json!([{"metadata": {"name": "shop", "annotations": own}}]))
        }
        "/apis/networking.k8s.io/v1/networkpolicies" => list(rules.clone()),
        _ => (404, json!({"kind": "Status", "status": "Failure", "message": "not found", "code": 404})),
    }))
}

#[test]
fn allowed_connections_are_shown_with_their_clause() {
    let server = counted(Some("1/10"));
    let run = weir(server.path(), &["logs", "--kubeconfig", "config", "--verdict", "allowed"]);
    let expected = "\
2026-11-21T18:01:00.000Z  allowed  shop/web -> shop/db  5432/TCP  ingress of shop/db, by shop/db ingress[0].from[0] ports[0], about 10 connections (one of 10 is told)  (node n1)
2026-11-21T18:01:10.000Z  allowed  shop/web -> shop/db  5432/TCP  ingress of shop/db, by shop/db ingress[0].from[0] ports[0], about 40 connections (one of 10 is told)  (node n1)
2026-11-21T18:02:00.000Z  allowed  shop/web -> shop/db  5432/TCP  ingress of shop/db, by shop/db ingress[0].from[1] ports[1], 3 connections  (node n1)
2026-11-21T18:03:00.000Z  allowed  shop/web -> shop/db  5432/TCP  ingress of shop/db, by shop/db ingress[7].from[0] ports[0], 2 connections  (node n1)
2026-11-21T18:04:00.000Z  allowed  shop/db -> shop/web  4000/TCP  egress of shop/db, no policy isolates shop/db, of several peers, about 10 connections (one of 10 is told)  (node n1)
";
    assert_eq!((run.code, run.out.as_str()), (Some(0), expected), "{run:?}");
    let count = |verdict: &[&str]| {
        weir(server.path(), &[&["logs", "--kubeconfig", "config"], verdict].concat()).out.lines().count()
    };
    assert_eq!([count(&["--verdict", "denied"]), count(&[]), count(&["--verdict", "all"])], [1, 7, 7]);
    let would = weir(server.path(), &["logs", "--kubeconfig", "config", "--verdict", "would-deny"]).out;
    let expected = "would-deny  shop/db -> shop/web  4000/TCP  egress of shop/db, would be isolated by shop/new  (node n1, and 1 ";
    assert!(would.lines().count() == 1 && would.contains(expected), "{would}");
}

#[test]
fn counters_say_which_clause_let_how_many_connections_pass() {
    let server = counted(Some("1/10"));
    let ask = |more: &[&str]| {
        weir(
            server.path(),
            &[&["explain", "pod", "db", "--counters", "--kubeconfig", "config"], more].concat(),
        )
    };
    let run = ask(&[]);
    let expected = "\
pod shop/db
  the log of n1 begins at 2026-11-21T18:00:00Z
  namespace shop asks for one of 10 allowed connections; ~ is an estimate

ingress
        ~50  2026-11-21T18:01:10Z  shop/db  spec.ingress[0].from[0] ports[0]  pods with app=web in namespace shop, 5432/TCP
      never                        shop/db  spec.ingress[0].from[1] ports[0]  addresses 203.0.113.0/24, 5432/TCP
      never                        shop/db  spec.ingress[0].from[0] ports[1]  pods with app=web in namespace shop, 80/TCP
          3  2026-11-21T18:02:00Z  shop/db  spec.ingress[0].from[1] ports[1]  addresses 203.0.113.0/24, 80/TCP
      never                        shop/db  spec.ingress[1].from[0] ports[0]  pods with app=web in namespace shop, 80/TCP
                                   the first match counts, and shop/db spec.ingress[0] from[0] ports[1] comes before it
          2  2026-11-21T18:03:00Z  by clauses that are gone, or too many to tell apart
          7  2026-11-21T18:05:00Z  denied (packets)

egress
        ~10  2026-11-21T18:04:00Z  no policy isolated it
          2  2026-11-21T18:06:00Z  passed, and audited policies would deny it (packets)
";
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), expected, ""), "{run:?}");

    let answer = ask(&["-o", "json", "--since", "2h"]).json();
    let counters = &answer["subjects"][0]["counters"];
    assert_eq!((&counters["withinSeconds"], &counters["logAllowed"]), (&json!(7200), &json!(10)));
    assert_eq!(counters["logSince"], json!({"n1": "2026-11-21T18:00:00.5Z"}));
    let clauses = counters["ingress"]["clauses"].as_array().expect("clauses");
    let first = json!({"policy": "shop/db", "path": "spec.ingress[0].from[0]", "portPath": "spec.ingress[0].ports[0]",
        "text": "pods with app=web in namespace shop, 5432/TCP", "connections": 50, "estimated": true,
        "lastSeen": "2026-11-21T18:01:10.000Z", "coveredBy": null});
    assert_eq!((clauses.len(), &clauses[0]), (5, &first));
    assert_eq!(counters["ingress"]["denied"]["connections"], 7);
    // without the flag there are none
    let plain = weir(server.path(), &["explain", "pod", "db", "--kubeconfig", "config", "-o", "json"]).json();
    assert!(plain["subjects"][0].get("counters").is_none(), "{plain}");

    // of a namespace that does not ask, what to do; of a cluster without agents, and of files, why there are none
    let run = weir(counted(None).path(), &["explain", "pod", "db", "--counters", "--kubeconfig", "config"]);
    assert!(run.out.contains("kubectl annotate namespace shop weir.dev/log-allowed=true "), "{run:?}");
    let run = ask(&["--weir-namespace", "elsewhere"]);
    assert!(run.code == Some(2) && run.err.contains("--weir-namespace"), "{run:?}");
    let run = weir(server.path(), &["explain", "pod", "db", "--counters", "-f", "."]);
    assert!(run.code == Some(2) && run.err.contains("leave out -f"), "{run:?}");
    let run = ask(&["-o", "dot"]);
    assert!(run.code == Some(2) && run.err.contains("-o json"), "{run:?}");
}
