//! Who may do what: every way to the agent, every role, and what is told of those who were refused.

use std::fs;
use std::net::SocketAddr;

use crate::support::http::{Reply, call, receive, request, try_receive};
use crate::support::legacy::Legacy;
use crate::support::network::{Far, NEAR, alone, as_user, call_on};
use crate::support::{Agent, Place, task, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, UnixStream};
use tokio::time::Instant;

/// A user of the node who is not root.
const NOBODY: u32 = 65534;

const ZBS: &str = "/zbs/primarystorage/vhost";

/// Routes, and the least role that each is for; none of them changes anything here.
fn routes() -> Vec<(&'static str, String, &'static str)> {
    let zbs = |path: &str| format!("{ZBS}{path}");
    vec![
        ("GET", "/v1/node".into(), "read"),
        ("GET", "/v1/status".into(), "read"),
        ("GET", "/v1/targets".into(), "read"),
        ("GET", "/v1/targets/a".into(), "read"),
        ("GET", "/v1/targets/a/health".into(), "read"),
        ("GET", "/v1/targets/a/volumes".into(), "read"),
        ("GET", "/v1/targets/a/volumes/b".into(), "read"),
        ("GET", "/metrics".into(), "read"),
        ("POST", zbs("/target/health"), "read"),
        ("POST", zbs("/check"), "read"),
        ("POST", "/host/echo".into(), "read"),
        ("GET", "/v1/targets/a/health?deep=true".into(), "volumes"),
        ("POST", zbs("/deactivate"), "volumes"),
        ("POST", zbs("/activate"), "volumes"),
        ("POST", zbs("/resize"), "volumes"),
        ("POST", zbs("/bdev/create"), "volumes"),
        ("POST", zbs("/bdev/delete"), "volumes"),
        ("PUT", "/v1/targets/a/volumes".into(), "volumes"),
        ("PUT", "/v1/targets/a/volumes/b".into(), "volumes"),
        ("DELETE", "/v1/targets/a/volumes/b".into(), "volumes"),
        ("POST", "/v1/targets/a/volumes/b/resize".into(), "volumes"),
        ("POST", "/v1/prepare?dryRun=x".into(), "deploy"),
        ("POST", "/v1/reclaim".into(), "deploy"),
        ("PUT", "/v1/targets/a?dryRun=x".into(), "deploy"),
        ("DELETE", "/v1/targets/a?dryRun=x".into(), "deploy"),
        ("POST", zbs("/target/prepareenv"), "deploy"),
        ("POST", zbs("/target/ensure"), "deploy"),
        ("POST", zbs("/deploy"), "deploy"),
        ("POST", zbs("/destroy"), "deploy"),
        ("POST", "/host/connect".into(), "deploy"),
        ("POST", "/host/ping".into(), "deploy"),
        ("POST", "/zbs/primarystorage/check/host/connection".into(), "deploy"),
        ("POST", "/zbs/primarystorage/host/updatedependency".into(), "deploy"),
    ]
}

const ROLES: [&str; 4] = ["read", "volumes", "deploy", "admin"];

fn rank(role: &str) -> usize {
    ROLES.iter().position(|known| *known == role).unwrap()
}

fn token(role: &str) -> String {
    format!("token-of-{role}-0123456789")
}

/// A setting for a token of each role.
fn tokens() -> String {
    let one = |role| {
        let hash: String =
            Sha256::digest(token(role)).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[[access.token]]\nname = \"{role}-one\"\nrole = \"{role}\"\nhash = \"{hash}\"\n")
    };
    ROLES.map(one).concat()
}

/// A body that no handler takes, so that nothing is changed.
const WRONG: &str = "[]";

/// A call of a local user over loopback.
async fn as_local(uid: u32, to: SocketAddr, method: &str, path: &str, body: &str) -> Reply {
    let socket = as_user(uid, || TcpSocket::new_v4().unwrap());
    let stream = socket.connect(to).await.unwrap();
    call_on(stream, method, path, &[], body).await
}

async fn with_token(agent: &Agent, role: &str, method: &str, path: &str, body: &str) -> Reply {
    let header = format!("Bearer {}", token(role));
    call(agent.address, method, path, &[("Authorization", &header)], body).await
}

#[test]
fn each_role_may_do_what_it_is_for_and_nothing_more() {
    alone(each_role_from_elsewhere);
}

async fn each_role_from_elsewhere() {
    let far = Far::new();
    let place = Place::on("two-node").settings(&tokens()).env("VHOST_AGENT_LISTEN", "[::]:0");
    let agent = place.ready().await;
    let before = place.snapshot();
    for role in ROLES {
        for (method, path, least) in routes() {
            let header = format!("Bearer {}", token(role));
            let stream = far.connect(agent.address.port()).await;
            let shown = [("Authorization", header.as_str())];
            let reply = call_on(stream, method, &path, &shown, WRONG).await;
            if rank(role) < rank(least) {
                reply.must_be_problem(403, "role-insufficient");
                let text = reply.text();
                assert!(text.contains(&format!("token {role}-one has the role {role}")), "{text}");
            } else {
                assert!(
                    ![401, 403].contains(&reply.status),
                    "{role} {method} {path}: {}",
                    reply.text()
                );
            }
        }
    }
    before.must_be_what_is(&place);
    assert!(!agent.log().contains("token-of-"));
}

#[tokio::test]
async fn a_role_for_volumes_deploys_no_target_for_them() {
    let place = Place::on("two-node").settings(&tokens());
    let agent = place.ready().await;
    let body =
        r#"{"installPath":"zbs://p/v","bdevName":"b","controllerName":"c","image":"zbs-vhost:1"}"#;
    let reply = with_token(&agent, "volumes", "POST", &format!("{ZBS}/activate"), body).await;
    assert_eq!(reply.json()["code"], "role-insufficient", "{}", reply.text());
    let targets = with_token(&agent, "read", "GET", "/v1/targets", "").await;
    assert_eq!(targets.json()["targets"], serde_json::json!([]));
}

#[tokio::test]
async fn root_of_a_container_is_not_root_over_loopback() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let url = format!("http://{}/v1/prepare?dryRun=x", agent.address);
    let call = |through: &[&str]| {
        let curl = ["curl", "-sS", "-m", "20", "-X", "POST", "--json", WRONG, &url];
        let words = [through, &curl].concat();
        let output = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let contained = call(&["unshare", "--pid", "--fork", "--kill-child"]);
    assert!(contained.contains("\"role-insufficient\""), "{contained}");
    assert!(contained.contains("root, perhaps of a container"), "{contained}");
    let roots = call(&["env"]);
    assert!(!roots.contains("role-insufficient") && roots.contains("code"), "{roots}");
}

#[test]
fn from_elsewhere_only_signs_of_life_are_served_until_somebody_is_named() {
    alone(async || {
        let far = Far::new();
        let place = Place::on("two-node").env("VHOST_AGENT_LISTEN", "[::]:0");
        let agent = place.ready().await;
        let port = agent.address.port();
        for path in ["/healthz", "/readyz", "/healthz/"] {
            assert_eq!(
                call_on(far.connect(port).await, "GET", path, &[], "").await.status,
                200,
                "{path}"
            );
        }
        drop(agent);
        let routes: Vec<_> = routes().into_iter().chain([("GET", "/no/such".into(), "")]).collect();
        // A caller that is refused more often waits for each answer.
        for some in routes.chunks(9) {
            let agent = place.ready().await;
            let before = place.snapshot();
            for (method, path, _) in some {
                let stream = far.connect(agent.address.port()).await;
                let reply = call_on(stream, method, path, &[], WRONG).await;
                reply.must_be_problem(403, "access-not-configured");
                let text = reply.text();
                assert!(text.contains("vhost-agent setup --controller"), "{text}");
            }
            before.must_be_what_is(&place);
        }
        for (toml, status) in [
            ("[access]\nopen = true\n", 200),
            ("[access]\nallow = [\"10.8.0.0/24\"]\n", 200),
            ("[access]\nallow = [\"10.7.0.0/24\"]\n", 403),
        ] {
            let place = Place::on("two-node").settings(toml).env("VHOST_AGENT_LISTEN", "[::]:0");
            let agent = place.ready().await;
            let stream = far.connect(agent.address.port()).await;
            let reply = call_on(stream, "POST", "/host/ping", &[], "{}").await;
            assert_eq!(reply.status, status, "{toml} {}", reply.text());
        }
    });
}

#[test]
fn nobody_elsewhere_is_root_by_the_port_that_the_call_comes_from() {
    alone(async || {
        let far = Far::new();
        let place = Place::on("two-node").env("VHOST_AGENT_LISTEN", "[::]:0");
        let agent = place.ready().await;
        // The kernel tells of the agent's own listener where it knows no connection.
        let stream = far.connect_from(agent.address.port(), agent.address.port()).await;
        let reply = call_on(stream, "POST", "/v1/reclaim", &[], "{}").await;
        reply.must_be_problem(403, "access-not-configured");
    });
}

#[tokio::test]
async fn nobody_is_root_by_closing_a_connection_before_it_is_looked_at() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let mut bytes = request("POST", "/v1/reclaim", &[], "{}");
    bytes.push('x');
    for _ in 0..20 {
        // All of it is there, and its sender gone, before the agent is.
        agent.signal(Signal::SIGSTOP);
        let mut stream = as_user(NOBODY, || std::net::TcpStream::connect(agent.address)).unwrap();
        std::io::Write::write_all(&mut stream, bytes.as_bytes()).unwrap();
        drop(stream);
        agent.signal(Signal::SIGCONT);
    }
    assert_eq!(agent.get("/healthz").await.status, 200);
    agent.logged("role-insufficient").await;
    assert!(!agent.log().contains("by uid 0"), "{}", agent.log());
}

#[tokio::test]
async fn a_page_in_a_browser_of_somebody_who_may_call_changes_nothing() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    for origin in ["https://evil.example", "null", "http://node:7070"] {
        let headers = [("Origin", origin), ("Content-Type", "text/plain")];
        let reply = call(agent.address, "POST", "/v1/reclaim", &headers, "{}").await;
        reply.must_be_problem(403, "cross-site");
    }
    let own = [("Origin", "http://node")];
    assert_eq!(call(agent.address, "POST", "/v1/reclaim", &own, "{}").await.status, 200);
}

#[tokio::test]
async fn over_loopback_only_root_may_change_anything() {
    for listen in ["127.0.0.1:0", "[::]:0"] {
        let place = Place::on("two-node").env("VHOST_AGENT_LISTEN", listen);
        let mut agent = place.ready().await;
        agent.address.set_ip([127, 0, 0, 1].into());
        for (method, path, least) in routes() {
            let reply = as_local(NOBODY, agent.address, method, &path, WRONG).await;
            match least {
                "read" => assert!(![401, 403].contains(&reply.status), "{method} {path}"),
                _ => reply.must_be_problem(403, "role-insufficient"),
            }
            let reply = as_local(0, agent.address, method, &path, WRONG).await;
            assert!(![401, 403].contains(&reply.status), "{method} {path}: {}", reply.text());
        }
    }
}

#[test]
fn a_local_user_gains_nothing_by_the_nodes_own_address_or_by_the_agent_itself() {
    alone(async || {
        let _far = Far::new();
        let settings = "[access]\nallow = [\"10.8.0.0/24\"]\n[outgoing]\nto = [\"10.8.0.0/24\"]\n[callbacks]\nfirst_delay = \"20ms\"\n";
        let place = Place::on("two-node").settings(settings).env("VHOST_AGENT_LISTEN", "[::]:0");
        let mut agent = place.ready().await;
        agent.address.set_ip(NEAR.parse().unwrap());
        let reply = as_local(NOBODY, agent.address, "POST", "/v1/reclaim", "{}").await;
        reply.must_be_problem(403, "role-insufficient");
        assert_eq!(as_local(0, agent.address, "POST", "/v1/reclaim", "{}").await.status, 200);
        // Its result would be brought to a route that changes the node, by the agent, which is root.
        let to = format!("http://{}{ZBS}/destroy", agent.address);
        let uuid = task(9);
        let headers = [("taskuuid", uuid.as_str()), ("callbackurl", to.as_str())];
        let socket = as_user(NOBODY, || TcpSocket::new_v4().unwrap());
        let stream = socket.connect(agent.address).await.unwrap();
        let path = format!("{ZBS}/target/health");
        let reply = call_on(stream, "POST", &path, &headers, "{}").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        agent.logged("was refused: called-by-agent").await;
        assert!(!agent.log().contains("destroy by"), "{}", agent.log());
        drop(agent);
        // A controller on the node itself, which is not root, is named alone.
        let settings = format!("[access]\nallow = [\"{NEAR}\"]\n");
        let place = Place::on("two-node").settings(&settings).env("VHOST_AGENT_LISTEN", "[::]:0");
        let mut agent = place.ready().await;
        agent.address.set_ip(NEAR.parse().unwrap());
        assert_eq!(as_local(NOBODY, agent.address, "POST", "/v1/reclaim", "{}").await.status, 200);
        agent.logged("access.allow has 10.8.0.1, an address of this node").await;
    });
}

#[tokio::test]
async fn the_nodes_socket_takes_root_and_nobody_whom_its_mode_does_not_let_in() {
    let place = Place::on("two-node").settings("[access]\nallow = [\"192.0.2.1\"]\n");
    let agent = place.ready().await;
    let socket = place.socket();
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let bytes = request("POST", "/v1/reclaim", &[("Connection", "close")], "{}");
    stream.write_all(bytes.as_bytes()).await.unwrap();
    assert_eq!(receive(&mut stream).await.status, 200);
    let refused = as_user(NOBODY, || std::os::unix::net::UnixStream::connect(&socket));
    // A capability could still let it through where the whole test is root: then its uid is not 0 all the same.
    if let Ok(stream) = refused {
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        assert!(try_receive(&mut stream).await.is_some());
    }
    agent.logged("reclaim by uid 0").await;
}

/// The lines of a file of the audit log.
fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_change_and_every_refusal_is_a_line_of_the_audit_log_without_a_secret() {
    let place = Place::on("two-node");
    let file = place.folder().join("audit.log");
    let settings = format!(
        "[log]\nlevel = \"error\"\n[access]\naudit_file = \"{}\"\n{}",
        file.display(),
        tokens()
    );
    let place = place.settings(&settings);
    let agent = place.ready().await;
    let body =
        r#"{"sshPassword":"not-to-be-told","bdevName":"bdev-1","controllerName":"volume-1"}"#;
    let header = format!("Bearer {}", token("volumes"));
    let uuid = task(7);
    let headers = [
        ("Authorization", header.as_str()),
        ("taskuuid", &uuid),
        ("callbackurl", "http://127.0.0.1:1/callback"),
    ];
    let reply = call(agent.address, "POST", &format!("{ZBS}/deactivate"), &headers, body).await;
    assert_eq!(reply.status, 200);
    with_token(&agent, "deploy", "DELETE", "/v1/targets/none?force=true", "{}").await;
    with_token(&agent, "read", "DELETE", "/v1/targets/none", "{}").await;
    let wrong = [("Authorization", "Bearer not-to-be-told-0123456789")];
    call(agent.address, "GET", "/v1/node", &wrong, "").await;
    let logged = until("all are told", async || {
        let logged = lines(&file);
        (logged.len() >= 4).then_some(logged)
    })
    .await;
    let find = |outcome: &str, key: &str, value: &str| {
        let fits = |line: &&Value| line["outcome"] == outcome && line[key] == value;
        logged.iter().find(fits).unwrap_or_else(|| panic!("{outcome} {key} {value}: {logged:#?}"))
    };
    let change = find("done", "route", "deactivate");
    assert_eq!(
        (&change["by"], &change["role"], &change["address"], &change["volume"], &change["task"]),
        (
            &"token volumes-one".into(),
            &"volumes".into(),
            &"127.0.0.1".into(),
            &"volume-1".into(),
            &uuid.into()
        )
    );
    let destroy = logged.iter().find(|line| line["route"] == "destroy").unwrap();
    assert_eq!(
        (&destroy["of_target"], &destroy["force"], &destroy["by"]),
        (&"none".into(), &true.into(), &"token deploy-one".into())
    );
    assert_eq!(find("refused", "code", "role-insufficient")["by"], "token read-one");
    let refused = find("refused", "code", "token-wrong");
    assert_eq!(refused["route"], "GET /v1/node");
    assert!(logged.iter().all(|line| line["timestamp"].is_string()));
    let all = fs::read_to_string(&file).unwrap() + &agent.log();
    assert!(!all.contains("not-to-be-told") && !all.contains("token-of-"), "{all}");
    assert!(agent.log().contains("deactivate of zbs-vhost/volume-1 by token volumes-one: done"));
}

#[tokio::test]
async fn a_command_where_no_agent_runs_has_its_line_too() {
    let place = Place::on("two-node").mounted();
    let file = place.folder().join("audit.log");
    let place = place.settings(&format!("[access]\naudit_file = \"{}\"\n", file.display()));
    let ended = place.run(&["reclaim"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let logged = lines(&file);
    let line = logged.iter().find(|line| line["route"] == "reclaim").unwrap();
    assert_eq!((&line["by"], &line["outcome"]), (&"command".into(), &"done".into()), "{logged:?}");
    assert!(!ended.err.contains("by command"), "{}", ended.err);
}

#[tokio::test]
async fn who_goes_on_with_wrong_tokens_waits_and_is_counted() {
    let place = Place::on("two-node").settings(&tokens());
    let agent = place.ready().await;
    let wrong = [("Authorization", "Bearer 0123456789abcdef0123456789")];
    let ask = async |count: usize| {
        let began = Instant::now();
        for _ in 0..count {
            let reply = call(agent.address, "GET", "/v1/node", &wrong, "").await;
            reply.must_be_problem(401, "token-wrong");
        }
        began.elapsed()
    };
    let mut asked = 0;
    until("one waits", async || {
        asked += 1;
        (ask(1).await.as_millis() >= 1000).then_some(())
    })
    .await;
    assert!(asked > 10, "the first ones do not wait");
    // Whoever has a token does not.
    let page = with_token(&agent, "read", "GET", "/metrics", "").await;
    assert!(
        page.text()
            .contains(&format!("vhost_http_refused_total{{reason=\"token-wrong\"}} {asked}")),
        "{}",
        page.text()
    );
}

#[test]
fn only_root_on_the_node_gets_through_to_the_legacy_agents_own_operation() {
    alone(async || {
        let far = Far::new();
        let legacy = Legacy::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let settings = format!(
            "fallback_url = \"http://{}\"\n[access]\nallow = [\"10.8.0.0/24\"]\n",
            legacy.address
        );
        let place = Place::on("two-node").settings(&settings).env("VHOST_AGENT_LISTEN", "[::]:0");
        let mut agent = place.ready().await;
        agent.address.set_ip([127, 0, 0, 1].into());
        let port = agent.address.port();
        let other = call_on(far.connect(port).await, "POST", "/kvm/vm/start", &[], "{}").await;
        assert_eq!(other.status, 200, "{}", other.text());
        agent.logged("handed on of POST /kvm/vm/start by 10.8.0.2: done (200)").await;
        for path in [
            "/kvmagent/operations/restart-fence",
            "/kvmagent/plugins/x",
            "//kvmagent/%6fperations/restart-fence",
            "/KVMAGENT/plugins",
        ] {
            let reply = call_on(far.connect(port).await, "POST", path, &[], "{}").await;
            reply.must_be_problem(403, "node-root-only");
            assert_eq!(as_local(0, agent.address, "POST", path, "{}").await.status, 200, "{path}");
        }
    });
}

#[tokio::test]
async fn a_change_that_takes_long_has_a_line_before_its_agent_dies() {
    // It takes what it is sent, and answers nothing.
    let legacy = Legacy::with(async |mut line| while line.more().await {}).await;
    let place = Place::on("two-node").settings(&legacy.settings(""));
    let agent = place.ready().await;
    let mut stream = tokio::net::TcpStream::connect(agent.address).await.unwrap();
    stream.write_all(request("GET", "/kvm/vm/start", &[], "{}").as_bytes()).await.unwrap();
    agent.logged("handed on of GET /kvm/vm/start by uid 0: begun").await;
    agent.signal(Signal::SIGKILL);
}

#[test]
fn only_an_admin_gets_through_to_the_legacy_agent() {
    alone(async || {
        let far = Far::new();
        let legacy = Legacy::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let place = Place::on("two-node").settings(&legacy.settings(&tokens()));
        let place = place.env("VHOST_AGENT_LISTEN", "[::]:0");
        let agent = place.ready().await;
        for role in ROLES {
            let header = format!("Bearer {}", token(role));
            let shown = [("Authorization", header.as_str())];
            let call = async |path| {
                call_on(far.connect(agent.address.port()).await, "POST", path, &shown, "{}").await
            };
            let reply = call("/kvm/vm/start").await;
            if role == "admin" {
                assert_eq!(reply.status, 200, "{}", reply.text());
                call("/kvmagent/plugins/x").await.must_be_problem(403, "node-root-only");
            } else {
                reply.must_be_problem(403, "role-insufficient");
                assert_eq!(legacy.seen(), Vec::<String>::new());
            }
        }
        assert_eq!(legacy.seen().len(), 1);
    });
}

#[tokio::test]
async fn a_token_makes_up_for_a_local_user_who_is_not_root() {
    let place = Place::on("two-node").settings(&tokens());
    let agent = place.ready().await;
    for (role, status) in [("read", 403), ("deploy", 200)] {
        let socket = as_user(NOBODY, || TcpSocket::new_v4().unwrap());
        let stream = socket.connect(agent.address).await.unwrap();
        let header = format!("Bearer {}", token(role));
        let shown = [("Authorization", header.as_str())];
        let reply = call_on(stream, "POST", "/v1/reclaim", &shown, "{}").await;
        assert_eq!(reply.status, status, "{role} {}", reply.text());
    }
}
