//! The commands that talk to the API.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json as value};

use crate::fake::{Asked, Ended, Fake, ended, eventually, heddle, json};

const ORDERS: &str = "apiVersion: heddle.dev/v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
const ROUTE: &str = "apiVersion: heddle.dev/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: orders}], rules: [{}]}\n";

fn problem(status: u16, extra: &Value) -> (u16, String) {
    let mut body = value!({"type": "about:blank", "title": "No", "status": status, "detail": "because"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json(status, &body)
}

/// Says yes to every transaction.
fn transactions(asked: &Asked) -> (u16, String) {
    let results: Vec<Value> = asked.body["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|operation| match operation.get("apply") {
            Some(object) => value!({"action": "created", "object": object}),
            None => {
                let target = &operation["delete"];
                value!({"action": "deleted", "object": {"kind": target["kind"], "metadata": {"name": target["name"], "namespace": target["namespace"]}}})
            }
        })
        .collect();
    json(200, &value!({"revision": 5, "results": results}))
}

#[test]
fn apply_sends_everything_in_one_transaction_in_order_with_the_token() {
    let fake = Fake::start(transactions);
    let file = fake.write("x.yaml", &format!("{ROUTE}---\n{ORDERS}"));
    let ended = fake.run(&["apply", "-f", &file]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.out, "service shop/orders created\nhttproute shop/r created\n2 created, revision 5\n");
    let asked = fake.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (asked[0].line.as_str(), asked[0].authorization.as_str()),
        ("POST /v1/transactions", "Bearer heddle_secret")
    );
    assert_eq!(asked[0].body["operations"][1]["apply"]["kind"], "HTTPRoute");

    let ended = fake.run(&["apply", "-f", &file, "--dry-run", "-o", "json"]);
    let answer: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(answer["results"][0]["action"], "created");
    assert_eq!(fake.lines()[1], "POST /v1/transactions?dryRun=true");
}

#[test]
fn standard_input_is_a_file_too() {
    let fake = Fake::start(transactions);
    let input = std::fs::File::open(fake.write("x.yaml", ORDERS)).unwrap();
    let mut command = fake.command(&["apply", "-f", "-"]);
    command.stdin(input);
    assert_eq!(ended(command).out, "service shop/orders created\n");
}

#[test]
fn faults_name_file_document_and_path_and_nothing_goes_out_when_a_file_is_malformed() {
    let fake = Fake::start(|_| {
        problem(422, &value!({"faults": [{"path": "operations[1].apply.spec.rules[0]", "message": "no backend"}]}))
    });
    let file = fake.write("x.yaml", &format!("{ROUTE}---\n{ORDERS}"));
    let ended = fake.run(&["apply", "-f", &file]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.out, "");
    let expected = format!(
        "error: refused by the control plane (422): because\n  {file}, document 1 (HTTPRoute shop/r):\n    spec.rules[0]: no backend\n  hint: nothing was changed\n"
    );
    assert_eq!(ended.err, expected);
    assert_eq!(fake.lines().len(), 1);

    let bad = fake.write("bad.yaml", &format!("{ORDERS}---\nkind: Nothing\n"));
    let ended = fake.run(&["apply", "-f", &file, "-f", &bad]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("bad.yaml, document 2: apiVersion is missing"), "{}", ended.err);
    assert!(ended.err.contains("bad.yaml, document 1: Service shop/orders is already in"), "{}", ended.err);
    assert_eq!(fake.lines().len(), 1);
}

#[test]
fn statuses_end_in_exit_codes_with_a_hint() {
    for (status, code, hint) in [
        (401, 4, "api-token create"),
        (403, 4, "role"),
        (404, 5, "heddle get KIND -A"),
        (409, 6, "because"),
        (412, 6, "resourceVersion"),
        (422, 1, "nothing was changed"),
        (500, 1, "its log"),
        (503, 3, "not ready yet"),
    ] {
        let fake = Fake::start(move |_| problem(status, &value!({})));
        let ended = fake.run(&["get", "svc", "orders", "-n", "shop"]);
        assert_eq!(ended.code, Some(code), "{status}: {ended:?}");
        assert!(ended.err.contains("because") && ended.err.contains(hint), "{status}: {}", ended.err);
        assert_eq!(fake.lines(), ["GET /v1/namespaces/shop/services/orders"]);
    }
}

#[test]
fn revoking_says_what_it_means_and_is_listed() {
    let made = value!({"namespace": "shop", "serviceAccount": "ci.bot", "revoked": "2026-01-01T00:00:00Z",
        "until": "2099-01-02T00:00:00Z"});
    let fake = Fake::start(move |asked| match asked.line.as_str() {
        "POST /v1/revocations" => json(201, &made),
        _ => json(200, &value!({"items": [made]})),
    });
    let ended = fake.run(&["revoke", "ci.bot.shop"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("ci.bot.shop from before 2026-01-01T00:00:00Z"), "{}", ended.out);
    assert!(ended.out.contains("heddle token create ci.bot.shop -o FILE"), "{}", ended.out);
    assert_eq!(fake.asked()[0].body, value!({"namespace": "shop", "serviceAccount": "ci.bot"}));
    let ended = fake.run(&["revoke"]);
    assert!(ended.out.starts_with("ACCOUNT") && ended.out.contains("ci.bot.shop"), "{}", ended.out);
    assert_eq!(fake.lines().last().unwrap(), "GET /v1/revocations");
}

#[test]
fn no_server_and_a_server_of_another_ca_are_unreachable_and_get_no_token() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fake = Fake::start(|_| json(200, &value!({"items": []})));
    let mut command = fake.command(&["get", "svc"]);
    command.env("HEDDLE_ADDRESS", format!("https://{gone}"));
    let ended = ended(command);
    assert_eq!(ended.code, Some(3));
    assert!(ended.err.contains("refused") && ended.err.contains("heddle-control-plane"), "{}", ended.err);

    let other = Fake::start(|_| json(200, &value!({"items": []})));
    let mut command = fake.command(&["get", "svc"]);
    command.env("HEDDLE_ADDRESS", format!("https://{}", other.address));
    let ended = crate::fake::ended(command);
    assert_eq!(ended.code, Some(3));
    assert!(ended.err.contains("trusts another CA"), "{}", ended.err);
    assert!(other.lines().is_empty());

    let mut command = fake.command(&["get", "svc"]);
    command.env("HEDDLE_ADDRESS", "http://127.0.0.1:1");
    assert_eq!(crate::fake::ended(command).code, Some(2));
}

#[test]
fn system_proxies_are_not_asked() {
    let fake = Fake::start(|_| json(200, &value!({"items": []})));
    let mut command = fake.command(&["get", "svc"]);
    command.env("HTTPS_PROXY", "http://127.0.0.1:1").env("ALL_PROXY", "http://127.0.0.1:1");
    assert_eq!(ended(command).code, Some(0));
}

fn service(name: &str) -> Value {
    value!({"apiVersion": "heddle.dev/v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop",
        "resourceVersion": "3", "generation": 1}, "spec": {"ports": [{"port": 80}]},
        "status": {"observedGeneration": 1, "applied": 2, "pending": 1}})
}

#[test]
fn get_reads_all_pages_and_shows_tables_json_and_yaml() {
    let fake = Fake::start(|asked| {
        let (items, token) =
            if asked.line.contains("continue=p%262") { (["b"], Value::Null) } else { (["a"], "p&2".into()) };
        let items: Vec<Value> = items.iter().map(|name| service(name)).collect();
        json(200, &value!({"items": items, "metadata": {"continue": token, "resourceVersion": "9"}}))
    });
    let ended = fake.run(&["get", "svc", "-A", "-l", "a=b"]);
    assert_eq!(
        ended.out,
        "NAMESPACE   NAME   PORTS   ACCOUNTS   SOURCE     PROXIES   AGE\nshop        a      80      a          declared   2/3       -\nshop        b      80      b          declared   2/3       -\n"
    );
    assert_eq!(
        fake.lines(),
        [
            "GET /v1/services?limit=500&labelSelector=a%3Db",
            "GET /v1/services?limit=500&labelSelector=a%3Db&continue=p%262"
        ]
    );
    let list: Value = serde_json::from_str(&fake.run(&["get", "svc", "-n", "shop", "-o", "json"]).out).unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("List"), 2));
    assert!(fake.lines()[2].starts_with("GET /v1/namespaces/shop/services?"));
    let yaml = fake.run(&["get", "svc", "-n", "shop", "-o", "yaml"]).out;
    assert!(yaml.contains("kind: List\n"), "{yaml}");
}

#[test]
fn what_get_shows_can_be_applied_again() {
    let fake = Fake::start(|asked| {
        if asked.line.starts_with("POST") {
            transactions(asked)
        } else if asked.line.ends_with("/orders") {
            json(200, &service("orders"))
        } else {
            json(200, &value!({"items": [service("a"), service("b")], "metadata": {}}))
        }
    });
    let list = fake.write("list.yaml", &fake.run(&["get", "svc", "-n", "shop", "-o", "yaml"]).out);
    let one = fake.write("one.json", &fake.run(&["get", "svc/orders", "-n", "shop", "-o", "json"]).out);
    assert_eq!(fake.run(&["apply", "-f", &list, "-f", &one]).code, Some(0));
    let sent = fake.asked().pop().unwrap().body;
    assert_eq!(sent["operations"].as_array().unwrap().len(), 3);
    assert_eq!(sent["operations"][0]["ifMatch"], "3");
    assert_eq!(sent["operations"][0]["apply"].get("status"), None);
}

#[test]
fn an_empty_list_says_so_without_spoiling_standard_output() {
    let fake = Fake::start(|_| json(200, &value!({"items": [], "metadata": {}})));
    let ended = fake.run(&["get", "hr"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""));
    assert!(ended.err.contains("no httproutes in namespace default"), "{}", ended.err);
}

#[test]
fn watch_goes_on_after_what_is_and_lists_again_when_the_server_forgot() {
    let fake = Fake::start(|asked| {
        if !asked.line.contains("watch=true") {
            return json(200, &value!({"items": [service("a")], "metadata": {"resourceVersion": "9"}}));
        }
        if asked.line.contains("resourceVersion=9") {
            let mut changed = service("b");
            changed["metadata"]["resourceVersion"] = "11".into();
            let mark = value!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}});
            return (200, format!("{}\n\n{mark}\n", value!({"type": "ADDED", "object": changed})));
        }
        assert!(asked.line.contains("resourceVersion=12"), "{}", asked.line);
        problem(410, &value!({}))
    });
    let mut child = fake
        .command(&["get", "svc", "-n", "shop", "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let shown: Vec<String> = (0..4).map(|_| lines.next().unwrap().unwrap()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        shown,
        [
            "NAME   PORTS   ACCOUNTS   SOURCE     PROXIES   AGE",
            "a      80      a          declared   2/3       -",
            "b      80      b          declared   2/3       -",
            "a      80      a          declared   2/3       -"
        ]
    );
}

#[test]
fn a_watch_shows_of_each_change_whether_the_workload_takes_traffic() {
    let asked_before = AtomicUsize::new(0);
    let workload = |version: &str| {
        value!({ "apiVersion": "heddle.dev/v1", "kind": "Workload",
            "metadata": { "name": "w1", "namespace": "shop", "resourceVersion": version },
            "spec": { "address": "10.0.0.1" } })
    };
    let fake = Fake::start(move |asked| {
        if asked.line.starts_with("GET /v1/proxies") {
            let ready = asked_before.fetch_add(1, Ordering::SeqCst) != 1;
            return json(200, &value!({ "items": [{ "name": "shop/w1", "ready": ready }] }));
        }
        if !asked.line.contains("watch=true") {
            return json(200, &value!({ "items": [workload("9")], "metadata": { "resourceVersion": "9" } }));
        }
        let next = if asked.line.contains("resourceVersion=9") { "10" } else { "11" };
        (200, format!("{}\n", value!({ "type": "MODIFIED", "object": workload(next) })))
    });
    let mut child = fake.command(&["get", "workloads", "-n", "shop", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let shown: Vec<String> = (0..4).map(|_| lines.next().unwrap().unwrap()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let column = shown[0].find("READY").unwrap();
    let ready: Vec<_> = shown[1..].iter().map(|line| line[column..].split(' ').next().unwrap()).collect();
    assert_eq!(ready, ["yes", "no", "yes"], "{shown:#?}");
}

#[test]
fn diff_shows_changes_and_can_tell_programs() {
    let fake = Fake::start(|asked| {
        if asked.line.starts_with("POST") {
            assert!(asked.line.contains("dryRun=true"));
            let mut new = service("orders");
            new["spec"]["ports"][0]["port"] = 81.into();
            return json(200, &value!({"revision": 5, "results": [{"action": "updated", "object": new}]}));
        }
        json(200, &service("orders"))
    });
    let file = fake.write("x.yaml", ORDERS);
    let ended = fake.run(&["diff", "-f", &file]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.out.contains("-  - port: 80\n+  - port: 81\n"), "{}", ended.out);
    assert_eq!(fake.run(&["diff", "-f", &file, "--exit-code"]).code, Some(7));
    let colored = fake.run(&["diff", "-f", &file, "--color", "always"]).out;
    assert!(colored.contains("\x1b[32m+  - port: 81\x1b[0m"), "{colored}");
}

#[test]
fn apply_waits_for_the_proxies_and_tells_who_rejects() {
    let fake = Fake::start(|asked| {
        if asked.line.starts_with("POST") {
            return json(
                200,
                &value!({"revision": 5, "results": [{"action": "updated", "object": service("orders")}]}),
            );
        }
        let mut now = service("orders");
        now["status"] = value!({"observedGeneration": 1, "applied": 1, "pending": 0,
            "rejected": [{"proxy": "shop/web-1", "reason": "bad regex"}]});
        json(200, &now)
    });
    let file = fake.write("x.yaml", ORDERS);
    let ended = fake.run(&["apply", "-f", &file, "--wait"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("Service shop/orders by shop/web-1: bad regex"), "{}", ended.err);

    let slow =
        Fake::start(
            |asked| {
                if asked.line.starts_with("POST") { transactions(asked) } else { json(200, &service("orders")) }
            },
        );
    let file = slow.write("x.yaml", ORDERS);
    let ended = slow.run(&["apply", "-f", &file, "--wait", "--timeout", "300ms"]);
    assert_eq!(ended.code, Some(8));
    assert!(ended.err.contains("1 pending"), "{}", ended.err);
}

#[test]
fn deleting_everything_of_a_namespace_leaves_the_mesh_and_what_proxies_registered() {
    let fake = Fake::start(|asked| {
        let path = asked.line.split_whitespace().nth(1).unwrap_or_default().to_owned();
        if asked.line.starts_with("POST") {
            return transactions(asked);
        }
        let items = if path.contains("meshconfig") {
            value!([{"kind": "MeshConfig", "metadata": {"name": "mesh"}}])
        } else if path.contains("workloads") {
            let labels = value!({"heddle.dev/registered": "true"});
            let cluster = value!({"heddle.dev/kubernetes": "true"});
            value!([
                {"kind": "Workload", "metadata": {"name": "pod", "namespace": "shop", "labels": labels}},
                {"kind": "Workload", "metadata": {"name": "vm", "namespace": "shop"}},
                {"kind": "Workload", "metadata": {"name": "web-7f", "namespace": "shop", "labels": cluster}},
            ])
        } else if path.contains("services") {
            value!([service("a")])
        } else {
            value!([])
        };
        json(200, &value!({"items": items, "metadata": {}}))
    });
    let ended = fake.run(&["delete", "all", "--all", "-n", "shop"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let sent = fake.asked().pop().unwrap().body["operations"].clone();
    let names: Vec<_> = sent.as_array().unwrap().iter().map(|one| one["delete"]["name"].clone()).collect();
    assert_eq!(names, ["vm", "a"], "{sent}");
}

#[test]
fn a_list_whose_pages_are_forgotten_meanwhile_begins_anew() {
    let pages = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match pages.fetch_add(1, Ordering::SeqCst) {
        0 => json(200, &value!({"items": [service("a")], "metadata": {"continue": "x"}})),
        1 => problem(410, &value!({"detail": "forgotten"})),
        _ => {
            assert!(!asked.line.contains("continue"), "{}", asked.line);
            json(200, &value!({"items": [service("b"), service("c")], "metadata": {}}))
        }
    });
    let ended = fake.run(&["get", "svc", "-n", "shop", "-o", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("\"b\"") && !ended.out.contains("\"a\""), "{}", ended.out);
}

#[test]
fn a_rollback_undoes_only_what_was_looked_at() {
    let fake = Fake::start(|asked| match asked.line.starts_with("POST") {
        true => problem(412, &value!({"detail": "the newest revision is 10, not 9"})),
        false => json(200, &value!({"items": [{"revision": 7}, {"revision": 9}]})),
    });
    let ended = fake.run(&["rollback"]);
    assert!(ended.code != Some(0) && ended.err.contains("the newest revision is 10"), "{ended:?}");
    assert_eq!(fake.asked()[1].body, value!({"revision": 7, "ifRevision": 9}));
    fake.run(&["rollback", "--to", "3"]);
    assert_eq!(fake.asked()[2].body, value!({"revision": 3}));
    fake.run(&["rollback", "--to", "3", "--if-revision", "8"]);
    assert_eq!(fake.asked()[3].body, value!({"revision": 3, "ifRevision": 8}));
}

#[test]
fn delete_by_name_file_and_selector() {
    let fake = Fake::start(|asked| match asked.line.split_whitespace().next() {
        Some("POST") => transactions(asked),
        _ if asked.line.contains("/gone") => problem(404, &value!({})),
        _ if asked.line.ends_with("/a") => json(200, &service("a")),
        _ => json(200, &value!({"items": [service("a"), service("b")], "metadata": {}})),
    });
    assert_eq!(fake.run(&["delete", "svc", "a", "-n", "shop"]).out, "service shop/a deleted\n");
    assert_eq!(
        fake.asked()[0].body["operations"],
        value!([{"delete": {"kind": "Service", "namespace": "shop", "name": "a"}}])
    );
    let out = fake.run(&["delete", "svc", "-l", "x=y", "-n", "shop"]).out;
    assert!(out.starts_with("service shop/a deleted\nservice shop/b deleted\n2 deleted"), "{out}");
    let file = fake.write("x.yaml", &format!("{ORDERS}---\n{ROUTE}"));
    let out = fake.run(&["delete", "-f", &file]).out;
    assert!(out.starts_with("httproute shop/r deleted\nservice shop/orders deleted\n"), "{out}");
    assert_eq!(fake.run(&["delete", "svc", "-n", "shop"]).code, Some(2));
    let ended = fake.run(&["delete", "svc", "gone", "a", "-n", "shop", "--ignore-not-found"]);
    assert_eq!(ended.out, "service shop/a deleted\n");
}

#[test]
fn join_tokens_are_written_for_their_owner_only() {
    let fake = Fake::start(|asked| {
        if asked.line.starts_with("GET") {
            return json(
                200,
                &value!({"items": [{"id": "x1", "namespace": "shop", "serviceAccount": "orders", "uses": 3, "used": 1}]}),
            );
        }
        json(
            201,
            &value!({"id": "x1", "controlPlane": "127.0.0.1:9701", "trustDomain": "t",
            "identity": "spiffe://t/ns/shop/sa/orders", "trustAnchors": "PEM", "token": "hjt_x1_secret"}),
        )
    });
    let join = fake.path("join.json");
    let ended =
        fake.run(&["token", "create", "orders.shop", "--ttl", "10m", "--uses", "3", "-o", join.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.out.contains("secret") && ended.out.contains("within 10m, 3 times"), "{}", ended.out);
    assert_eq!(join.metadata().unwrap().mode() & 0o777, 0o600);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(join).unwrap()).unwrap();
    assert_eq!((written["token"].as_str(), written.get("id")), (Some("hjt_x1_secret"), None));
    assert_eq!(
        fake.asked()[0].body,
        value!({"namespace": "shop", "serviceAccount": "orders", "ttl": "10m", "uses": 3})
    );
    let list = fake.run(&["token", "list"]).out;
    assert!(list.contains("x1   orders.shop   1 of 3"), "{list}");
    assert_eq!(fake.run(&["token", "delete", "x1"]).code, Some(0));
    assert_eq!(fake.lines()[2], "DELETE /v1/join-tokens/x1");
}

#[test]
fn an_api_token_can_be_written_as_a_context_that_works() {
    let fake = Fake::start(|asked| match asked.line.as_str() {
        "POST /v1/api-tokens" => {
            json(201, &value!({"id": "x", "name": "ci", "role": "operator", "token": "heddle_other"}))
        }
        _ => json(200, &value!({"items": []})),
    });
    let path = fake.path("ci.yaml");
    let made = fake.run(&["api-token", "create", "ci", "--role", "operator", "-o", path.to_str().unwrap()]);
    assert!(!made.out.contains("heddle_other"), "{made:?}");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let used = ended(heddle(&["get", "svc", "--config", path.to_str().unwrap()]));
    assert_eq!(used.code, Some(0), "{used:?}");
    assert_eq!(fake.asked()[1].authorization, "Bearer heddle_other");
    assert_eq!(fake.run(&["api-token", "create", "ci"]).out, "heddle_other\n");
}

#[test]
fn status_can_be_asked_by_programs() {
    let fake =
        Fake::start(|_| json(200, &value!([{"name": "shop/a", "connected": false, "since": "2020-01-01T00:00:00Z"}])));
    assert_eq!(fake.run(&["status"]).code, Some(0));
    assert_eq!(fake.run(&["status", "--check"]).code, Some(1));
    assert_eq!(fake.run(&["status", "other"]).code, Some(5));
    let list: Value = serde_json::from_str(&fake.run(&["status", "-o", "json"]).out).unwrap();
    assert_eq!(list[0]["name"], "shop/a");
}

#[test]
fn contexts_are_listed_and_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let contexts = "currentContext: a\ncontexts:\n- {name: a, address: 'https://a:1', caPem: x, token: t1}\n- {name: b, address: 'https://b:1', caPem: y, token: t2}\n";
    crate::fake::write_private(&path, contexts);
    let run = |arguments: &[&str]| -> Ended {
        let mut command = heddle(arguments);
        command.env("HEDDLE_CONFIG", &path);
        ended(command)
    };
    assert_eq!(
        run(&["context", "list"]).out,
        "CURRENT   NAME   ADDRESS\n*         a      https://a:1\n          b      https://b:1\n"
    );
    assert_eq!(run(&["context", "use", "b"]).code, Some(0));
    assert!(run(&["context", "list"]).out.contains("*         b "));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let unknown = run(&["context", "use", "c"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("there are: a, b"), "{}", unknown.err);
    let missing = ended(heddle(&["get", "svc", "--config", "/nonexistent/config.yaml"]));
    assert_eq!(missing.code, Some(2));
    assert!(missing.err.contains("first start"), "{}", missing.err);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let fake = Fake::start(|_| {
        let items: Vec<Value> = (0..20_000).map(|index| service(&format!("service-{index}"))).collect();
        json(200, &value!({"items": items, "metadata": {}}))
    });
    let mut child = fake.command(&["get", "svc"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let mut status = None;
    eventually("the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((status.unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn usage_completions_and_version() {
    assert_eq!(ended(heddle(&["frobnicate"])).code, Some(2));
    assert_eq!(ended(heddle(&["get"])).code, Some(2));
    let help = ended(heddle(&["--help"]));
    assert!(help.out.contains("Exit codes:"), "{}", help.out);
    let completions = ended(heddle(&["completions", "bash"]));
    assert!(completions.out.contains("_heddle()"), "{completions:?}");
    assert!(ended(heddle(&["version"])).out.starts_with("heddle 0."));
}
