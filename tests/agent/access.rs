//! Who may call: TLS with real certificates, tokens, addresses, and the doors for the node itself.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::support::certificates::{Authority, Signed, connect, shake_hands};
use crate::support::http::{Reply, call, receive, request, try_receive};
use crate::support::network::as_user;
use crate::support::{Agent, Place, soon, until};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::HandshakeKind;

/// A user of the node who is not root.
const NOBODY: u32 = 65534;
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A node whose agent speaks TLS; with `clients`, those have to show a certificate.
fn with_tls(own: &Signed, clients: Option<&Authority>) -> Place {
    let place = Place::on("two-node");
    let mut settings = format!(
        "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        file(&place, "node.pem").display(),
        file(&place, "node.key").display()
    );
    write(&place, own);
    if let Some(authority) = clients {
        fs::write(file(&place, "clients.pem"), &authority.pem).unwrap();
        settings += &format!("client_ca = \"{}\"\n", file(&place, "clients.pem").display());
    }
    place.settings(&settings)
}

fn file(place: &Place, name: &str) -> PathBuf {
    let folder = place.folder().join("tls");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// Replaces the agent's certificate as those do who renew them: the key first, each by a rename.
fn write(place: &Place, own: &Signed) {
    for (name, text) in [("node.key", &own.key), ("node.pem", &own.pem)] {
        let new = file(place, &format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, file(place, name)).unwrap();
    }
}

/// One call over TLS; `None` when the agent does not let this client in.
pub(crate) async fn ask(client: &TlsConnector, agent: &Agent) -> Option<Reply> {
    let mut stream = connect(client, agent.address, "127.0.0.1").await.ok()?;
    let bytes = request("POST", "/host/ping", &[("Connection", "close")], "{}");
    stream.write_all(bytes.as_bytes()).await.ok()?;
    try_receive(&mut stream).await
}

#[tokio::test]
async fn over_tls_the_agent_is_who_its_certificate_says_and_speaks_nothing_else() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), None);
    let agent = place.ready().await;
    let reply = ask(&authority.client(None), &agent).await.unwrap();
    assert_eq!((reply.status, &reply.json()["success"]), (200, &json!(true)));
    let error = connect(&Authority::new().client(None), agent.address, "127.0.0.1").await;
    assert!(error.unwrap_err().to_string().contains("invalid peer certificate"));
    let error = connect(&authority.client(None), agent.address, "another").await;
    assert!(error.unwrap_err().to_string().contains("another"));
    // Who speaks plain HTTP there gets no answer, and no silence for ever.
    let mut plain = TcpStream::connect(agent.address).await.unwrap();
    plain.write_all(request("GET", "/healthz", &[], "").as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("the agent closes it", plain.read_to_end(&mut rest)).await;
    assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
}

#[tokio::test]
async fn an_expired_certificate_of_the_agent_is_seen_by_its_callers() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign_expired("127.0.0.1"), None);
    let agent = place.ready().await;
    let error = connect(&authority.client(None), agent.address, "127.0.0.1").await;
    assert!(error.unwrap_err().to_string().contains("xpired"));
}

#[tokio::test]
async fn clients_have_to_show_a_certificate_of_the_right_authority_that_is_still_good() {
    let (own, clients) = (Authority::new(), Authority::new());
    let place = with_tls(&own.sign("127.0.0.1"), Some(&clients));
    let agent = place.ready().await;
    let good = clients.sign("controller");
    assert_eq!(ask(&own.client(Some(&good)), &agent).await.unwrap().status, 200);
    for (what, shown) in [
        ("none", None),
        ("another authority's", Some(Authority::new().sign("controller"))),
        ("an expired one", Some(clients.sign_expired("controller"))),
        ("the agent's own authority's", Some(own.sign("controller"))),
    ] {
        assert!(ask(&own.client(shown.as_ref()), &agent).await.is_none(), "{what}");
    }
    assert_eq!(ask(&own.client(Some(&good)), &agent).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_certificate_gives_the_role_of_the_rule_that_names_it_and_a_nodes_own_gives_none() {
    let authority = Authority::new();
    let own = authority.sign("127.0.0.1");
    let place = with_tls(&own, Some(&authority));
    let config = fs::read_to_string(place.config()).unwrap();
    let rules = "[[access.certificate]]\nsan = \"mn-*\"\nrole = \"deploy\"\n\
                 [[access.certificate]]\nsan = \"watch\"\nrole = \"read\"\n";
    fs::write(place.config(), format!("{config}{rules}")).unwrap();
    let agent = place.ready().await;
    for (shown, expected) in [
        (authority.sign("mn-1"), (200, "")),
        (authority.sign("watch"), (403, "role-insufficient")),
        (authority.sign("node-2"), (403, "certificate-unknown")),
        (own, (403, "certificate-unknown")),
    ] {
        let reply = ask(&authority.client(Some(&shown)), &agent).await.unwrap();
        let code = if reply.status == 200 { String::new() } else { reply.code() };
        assert_eq!((reply.status, code.as_str()), expected);
    }
}

#[tokio::test]
async fn without_rules_every_certificate_of_the_authority_may_call_but_the_agents_own() {
    let authority = Authority::new();
    let own = authority.sign("127.0.0.1");
    let place = with_tls(&own, Some(&authority));
    let agent = place.ready().await;
    let other = authority.sign("whoever");
    assert_eq!(ask(&authority.client(Some(&other)), &agent).await.unwrap().status, 200);
    let refused = ask(&authority.client(Some(&own)), &agent).await.unwrap();
    refused.must_be_problem(403, "certificate-unknown");
}

#[tokio::test]
async fn a_revoked_certificate_is_let_in_no_more_also_when_it_is_revoked_later() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), Some(&authority));
    let list = file(&place, "revoked.pem");
    fs::write(&list, authority.revoked(&[7])).unwrap();
    let place = place.env("VHOST_AGENT_TLS__CLIENT_CRL", list.to_str().unwrap());
    let agent = place.ready().await;
    let (revoked, good) = (authority.sign_as("mn", 7), authority.sign_as("mn", 8));
    assert!(ask(&authority.client(Some(&revoked)), &agent).await.is_none());
    assert_eq!(ask(&authority.client(Some(&good)), &agent).await.unwrap().status, 200);
    fs::write(&list, authority.revoked(&[7, 8])).unwrap();
    until("the other one is out too", async || {
        ask(&authority.client(Some(&good)), &agent).await.is_none().then_some(())
    })
    .await;
    let page = place.at_socket("/metrics").await.unwrap();
    assert!(page.text().contains("vhost_http_refused_total{reason=\"tls-handshake\"}"));
}

#[tokio::test]
async fn an_overdue_revocation_list_stays_in_force_with_a_warning() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), Some(&authority));
    let list = file(&place, "revoked.pem");
    let then = SystemTime::now() - Duration::from_secs(7200);
    fs::write(&list, authority.revoked_at(then, &[7])).unwrap();
    let place = place.env("VHOST_AGENT_TLS__CLIENT_CRL", list.to_str().unwrap());
    let agent = place.ready().await;
    agent.logged("the list of revoked certificates was to be replaced by").await;
    let (revoked, good) = (authority.sign_as("mn", 7), authority.sign_as("mn", 8));
    assert!(ask(&authority.client(Some(&revoked)), &agent).await.is_none());
    assert_eq!(ask(&authority.client(Some(&good)), &agent).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_old_connections_end() {
    let (old, new) = (Authority::new(), Authority::new());
    let place = with_tls(&old.sign("127.0.0.1"), None);
    let mut agent = place.ready().await;
    let mut kept = connect(&old.client(None), agent.address, "127.0.0.1").await.unwrap();
    kept.write_all(request("POST", "/host/ping", &[], "{}").as_bytes()).await.unwrap();
    assert_eq!(receive(&mut kept).await.status, 200);
    write(&place, &new.sign("127.0.0.1"));
    until("the new one is shown", async || ask(&new.client(None), &agent).await).await;
    assert!(ask(&old.client(None), &agent).await.is_none());
    let mut rest = Vec::new();
    let _ = soon("the old connection ends", kept.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    agent.must_live();
}

#[tokio::test]
async fn a_new_certificate_that_cannot_be_used_changes_nothing_until_it_can() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), None);
    let mut agent = place.ready().await;
    fs::write(file(&place, "node.pem"), "half of a certif").unwrap();
    agent.logged("cannot be used, so those from before stay in force").await;
    assert_eq!(ask(&authority.client(None), &agent).await.unwrap().status, 200);
    let next = Authority::new();
    write(&place, &next.sign("127.0.0.1"));
    // SIGHUP asks for the same, and ends nobody.
    agent.signal(Signal::SIGHUP);
    until("the new one is shown", async || ask(&next.client(None), &agent).await).await;
    agent.must_live();
    assert!(!agent.log().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn an_authority_that_is_taken_away_lets_its_clients_in_no_more() {
    let (own, before, after) = (Authority::new(), Authority::new(), Authority::new());
    let place = with_tls(&own.sign("127.0.0.1"), Some(&before));
    let agent = place.ready().await;
    let (of_before, of_after) = (before.sign("controller"), after.sign("controller"));
    let client = own.client(Some(&of_before));
    assert!(ask(&client, &agent).await.is_some());
    fs::write(file(&place, "clients.pem"), &after.pem).unwrap();
    until("the new ones are let in", async || ask(&own.client(Some(&of_after)), &agent).await)
        .await;
    assert!(ask(&client, &agent).await.is_none(), "also not with a session from before");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_keep_the_agent_from_starting() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), None);
    let key = file(&place, "node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let ended = place.run(&["serve"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("everybody may read it (mode 0644)"), "{}", ended.err);
    fs::remove_file(&key).unwrap();
    let ended = place.run(&["serve"]).await;
    assert!(ended.err.contains("node.key"), "{}", ended.err);
}

#[tokio::test]
async fn a_slow_handshake_is_given_up() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), None)
        .env("VHOST_AGENT_HTTP__HEADER_TIMEOUT", "200ms");
    let agent = place.ready().await;
    let mut slow = TcpStream::connect(agent.address).await.unwrap();
    slow.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("the agent closes it", slow.read_to_end(&mut rest)).await;
    assert_eq!(ask(&authority.client(None), &agent).await.unwrap().status, 200);
}

/// A node whose agent wants a token.
fn with_tokens(more: &str) -> Place {
    let place = Place::on("two-node");
    write_tokens(&place, TOKEN);
    let settings = format!("[access]\ntokens_file = \"{}\"\n{more}", tokens(&place).display());
    place.settings(&settings)
}

fn tokens(place: &Place) -> PathBuf {
    place.folder().join("tokens")
}

fn write_tokens(place: &Place, text: &str) {
    let new = place.folder().join("tokens.new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, tokens(place)).unwrap();
}

async fn ping(agent: &Agent, token: &str) -> Reply {
    let value = format!("Bearer {token}");
    call(agent.address, "POST", "/host/ping", &[("Authorization", &value)], "{}").await
}

#[tokio::test]
async fn every_route_but_signs_of_life_wants_a_token() {
    let place = with_tokens("");
    let agent = place.ready().await;
    assert_eq!(ping(&agent, TOKEN).await.status, 200);
    let before = place.snapshot();
    for (method, path) in [
        ("POST", "/zbs/primarystorage/vhost/target/prepareenv"),
        ("POST", "/zbs/primarystorage/vhost/destroy"),
        ("POST", "/host/connect"),
        ("GET", "/v1/node"),
        ("DELETE", "/v1/targets/zbs-vhost"),
        ("GET", "/metrics"),
        ("GET", "/no/such/route"),
        ("GET", "/healthz/../v1/node"),
    ] {
        let reply = call(agent.address, method, path, &[], "{}").await;
        reply.must_be_problem(401, "token-missing");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    ping(&agent, "0123456789abcdef0123456789abcdeg").await.must_be_problem(401, "token-wrong");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(agent.get(path).await.status, 200, "{path}");
    }
    before.must_be_what_is(&place);
    assert!(!agent.log().contains(TOKEN));
}

#[tokio::test]
async fn new_tokens_are_taken_without_a_restart_and_unusable_ones_change_nothing() {
    let place = with_tokens("");
    let agent = place.ready().await;
    let next = "fedcba9876543210fedcba9876543210";
    write_tokens(&place, &format!("{TOKEN}\n{next}\n"));
    until("the new one is taken", async || (ping(&agent, next).await.status == 200).then_some(()))
        .await;
    assert_eq!(ping(&agent, TOKEN).await.status, 200);
    write_tokens(&place, "short");
    agent.logged("cannot be used, so those from before stay in force").await;
    assert_eq!(ping(&agent, next).await.status, 200);
    write_tokens(&place, next);
    until("the old one is out", async || (ping(&agent, TOKEN).await.status == 401).then_some(()))
        .await;
    let log = agent.log();
    assert!(!log.contains(TOKEN) && !log.contains(next) && !log.contains("short"), "{log}");
}

#[tokio::test]
async fn a_token_is_out_also_while_the_certificate_cannot_be_used_and_with_the_last_one_all_are() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), None);
    write_tokens(&place, TOKEN);
    let path = tokens(&place).display().to_string();
    let place = place.env("VHOST_AGENT_ACCESS__TOKENS_FILE", &path);
    let agent = place.ready().await;
    let client = authority.client(None);
    let ping = async |token: &str| {
        let mut stream = connect(&client, agent.address, "127.0.0.1").await.unwrap();
        let value = format!("Bearer {token}");
        let headers = [("Connection", "close"), ("Authorization", value.as_str())];
        let bytes = request("POST", "/host/ping", &headers, "{}");
        stream.write_all(bytes.as_bytes()).await.unwrap();
        receive(&mut stream).await.status
    };
    assert_eq!(ping(TOKEN).await, 200);
    fs::write(file(&place, "node.pem"), "half of a certif").unwrap();
    agent.logged("cannot be used").await;
    let next = "fedcba9876543210fedcba9876543210";
    write_tokens(&place, next);
    until("the old one is out", async || (ping(TOKEN).await == 401).then_some(())).await;
    assert_eq!(ping(next).await, 200);
    write_tokens(&place, "# none\n");
    until("nobody may call", async || (ping(next).await == 401).then_some(())).await;
}

#[tokio::test]
async fn a_session_is_not_taken_up_again_where_certificates_are_wanted() {
    let (own, clients) = (Authority::new(), Authority::new());
    let place = with_tls(&own.sign("127.0.0.1"), Some(&clients));
    let agent = place.ready().await;
    // One client, which would keep a session; the certificate that it showed could have expired since.
    let client = own.client(Some(&clients.sign("controller")));
    for _ in 0..3 {
        let mut stream = connect(&client, agent.address, "127.0.0.1").await.unwrap();
        stream.write_all(request("POST", "/host/ping", &[], "{}").as_bytes()).await.unwrap();
        assert_eq!(receive(&mut stream).await.status, 200);
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

/// A call of a user who is not root, from another loopback address than the usual one.
async fn from(source: [u8; 4], agent: &Agent) -> Option<Reply> {
    let socket = as_user(NOBODY, || TcpSocket::new_v4().unwrap());
    socket.bind(SocketAddr::from((Ipv4Addr::from(source), 0))).unwrap();
    let mut stream = socket.connect(agent.address).await.unwrap();
    let bytes = request("POST", "/host/ping", &[("Connection", "close")], "{}");
    let _ = stream.write_all(bytes.as_bytes()).await;
    try_receive(&mut stream).await
}

#[tokio::test]
async fn calls_are_taken_from_the_addresses_that_are_allowed() {
    let settings = "[access]\nallow = [\"127.0.1.0/24\", \"127.0.0.9\"]\n";
    for listen in ["127.0.0.1:0", "[::]:0"] {
        let place = Place::on("two-node").settings(settings).env("VHOST_AGENT_LISTEN", listen);
        let mut agent = place.ready().await;
        agent.address.set_ip(Ipv4Addr::LOCALHOST.into());
        for allowed in [[127, 0, 1, 7], [127, 0, 0, 9]] {
            assert_eq!(from(allowed, &agent).await.unwrap().status, 200, "{allowed:?}");
        }
        let refused = from([127, 0, 0, 1], &agent).await.unwrap();
        assert_eq!((refused.status, refused.code().as_str()), (403, "address-not-allowed"));
        // Root could change the settings.
        assert_eq!(call(agent.address, "POST", "/host/ping", &[], "{}").await.status, 200);
    }
}

#[tokio::test]
async fn the_nodes_own_socket_wants_nothing_but_the_right_to_use_it() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), Some(&authority));
    let mut agent = place.ready().await;
    let mode = fs::metadata(place.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    assert_eq!(place.at_socket("/v1/node").await.unwrap().status, 200);
    let shown = place.run(&["status"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.out.contains("wants a client certificate, TLS"), "{}", shown.out);
    assert!(shown.out.contains("(running)"));
    agent.stop().await;
    assert!(!place.socket().exists());
    // One that was killed leaves its socket behind, and the next one takes its place.
    let agent = place.ready().await;
    agent.signal(Signal::SIGKILL);
    drop(agent);
    assert!(place.socket().exists());
    place.ready().await;
}

#[tokio::test]
async fn whom_the_socket_is_for_gets_to_it_whatever_the_umask() {
    let place = Place::on("two-node").prelude("umask 077; ");
    let path = place.folder().join("made/for/it/agent.sock");
    let place = place.env("VHOST_AGENT_ACCESS__SOCKET", path.to_str().unwrap());
    let _agent = place.start().await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o660);
    for folder in path.ancestors().skip(1).take(3) {
        assert_eq!(mode(folder), 0o755, "{}", folder.display());
    }
}

#[tokio::test]
async fn without_the_socket_the_command_line_says_why_it_cannot_reach_an_agent_with_tls() {
    let authority = Authority::new();
    let place = with_tls(&authority.sign("127.0.0.1"), None).env("VHOST_AGENT_ACCESS__SOCKET", "");
    let _agent = place.start().await;
    let shown = place.run(&["status"]).await;
    assert_eq!(shown.code, Some(1));
    assert!(
        shown.err.contains("speaks TLS") && shown.err.contains("access.socket"),
        "{}",
        shown.err
    );
}

#[tokio::test]
async fn without_the_socket_the_command_line_says_why_it_cannot_reach_an_agent_with_tokens() {
    let place = with_tokens("").env("VHOST_AGENT_ACCESS__SOCKET", "");
    let _agent = place.start().await;
    let shown = place.run(&["volume", "list"]).await;
    assert_eq!(shown.code, Some(1));
    assert!(
        shown.err.contains("wants a token") && shown.err.contains("access.socket"),
        "{}",
        shown.err
    );
}

/// One call over TLS with these headers, from that address; its status, `None` when nobody is let in so far.
async fn status(
    client: &TlsConnector,
    agent: &Agent,
    from: [u8; 4],
    token: Option<&str>,
) -> Option<u16> {
    let socket = as_user(NOBODY, || TcpSocket::new_v4().unwrap());
    socket.bind(SocketAddr::from((Ipv4Addr::from(from), 0))).unwrap();
    let stream = socket.connect(agent.address).await.unwrap();
    let mut stream = shake_hands(client, stream, "127.0.0.1").await.ok()?;
    let value = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Connection", "close")];
    headers.extend(value.as_deref().map(|value| ("Authorization", value)));
    let bytes = request("POST", "/host/ping", &headers, "{}");
    stream.write_all(bytes.as_bytes()).await.ok()?;
    Some(try_receive(&mut stream).await?.status)
}

#[tokio::test]
async fn all_that_are_set_have_to_be_passed() {
    let (own, clients) = (Authority::new(), Authority::new());
    let place = with_tls(&own.sign("127.0.0.1"), Some(&clients));
    write_tokens(&place, TOKEN);
    let path = tokens(&place).display().to_string();
    let place = place
        .env("VHOST_AGENT_ACCESS__TOKENS_FILE", &path)
        .env("VHOST_AGENT_ACCESS__ALLOW", "[\"127.0.0.9\"]");
    let agent = place.ready().await;
    let known = own.client(Some(&clients.sign("controller")));
    let (allowed, elsewhere) = ([127, 0, 0, 9], [127, 0, 0, 1]);
    assert_eq!(status(&known, &agent, allowed, Some(TOKEN)).await, Some(200));
    assert_eq!(status(&known, &agent, allowed, None).await, Some(401));
    assert_eq!(status(&own.client(None), &agent, allowed, Some(TOKEN)).await, None);
    assert_eq!(status(&known, &agent, elsewhere, Some(TOKEN)).await, None);
}

#[tokio::test]
async fn who_follows_the_events_is_judged_again_when_a_token_is_taken_away() {
    let place = with_tokens("");
    let agent = place.ready().await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let value = format!("Bearer {TOKEN}");
    let bytes = request("GET", "/v1/events", &[("Authorization", &value)], "");
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains("following") {
        assert_ne!(soon("it is told", stream.read_buf(&mut received)).await.unwrap(), 0);
    }
    write_tokens(&place, "fedcba9876543210fedcba9876543210");
    soon("the stream ends", async {
        while !received.ends_with(b"0\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "as a whole");
        }
    })
    .await;
    stream.write_all(bytes.as_bytes()).await.unwrap();
    receive(&mut stream).await.must_be_problem(401, "token-wrong");
}

#[tokio::test]
async fn signs_of_life_can_be_elsewhere_and_nothing_else_is_there() {
    let place = with_tokens("").env("VHOST_AGENT_ADMIN_LISTEN", "127.0.0.1:0");
    let agent = place.ready().await;
    let node = place.at_socket("/v1/node").await.unwrap().json();
    let admin: SocketAddr = node["access"]["adminListen"].as_str().unwrap().parse().unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(call(admin, "GET", path, &[], "").await.status, 200, "{path}");
    }
    call(admin, "POST", "/host/ping", &[], "{}").await.must_be_problem(404, "no-such-route");
    let header = [("Authorization", format!("Bearer {TOKEN}"))];
    let header = header.each_ref().map(|(name, value)| (*name, value.as_str()));
    for path in ["/healthz", "/metrics"] {
        let reply = call(agent.address, "GET", path, &header, "").await;
        reply.must_be_problem(404, "no-such-route");
    }
}

#[tokio::test]
async fn status_says_plainly_who_may_call() {
    let on_all = || Place::on("two-node").env("VHOST_AGENT_LISTEN", "[::]:0");
    let closed = on_all();
    let agent = closed.ready().await;
    let shown = closed.run(&["status"]).await;
    assert!(shown.out.contains("this node alone, and only root may change it"), "{}", shown.out);
    assert!(!shown.out.contains("warning"), "{}", shown.out);
    agent.logged("vhost-agent setup --controller").await;
    let open = on_all().settings("[access]\nopen = true\n");
    let agent = open.ready().await;
    for command in [&["status"][..], &["config", "check"]] {
        let shown = open.run(command).await;
        assert!(shown.out.contains("OPEN, whoever reaches it may do everything"), "{}", shown.out);
        assert!(shown.out.contains("access.open lets everybody"), "{}", shown.out);
    }
    agent.logged("access.open lets everybody").await;
    let token =
        format!("[[access.token]]\nname = \"a\"\nrole = \"read\"\nhash = \"{}\"\n", "0".repeat(64));
    for (toml, who, warning) in [
        (
            "[access]\nallow = [\"127.0.0.1\", \"10.0.0.0/8\"]\n",
            "wants an address in 127.0.0.1/32, 10.0.0.0/8",
            "any user of this node may do everything",
        ),
        (token.as_str(), "wants a token", "tokens without TLS can be read"),
    ] {
        let place = on_all().settings(toml);
        let agent = place.ready().await;
        for command in [&["status"][..], &["config", "check"]] {
            let shown = place.run(command).await;
            let says = [who, warning].iter().all(|text| shown.out.contains(text));
            assert!(says, "{command:?} {}", shown.out);
        }
        for text in [who, warning] {
            agent.logged(text).await;
        }
    }
    let place = with_tokens("allow = [\"127.0.0.0/8\"]\n");
    let _agent = place.ready().await;
    let shown = place.run(&["status"]).await;
    assert!(
        shown.out.contains("wants a token and an address in 127.0.0.0/8, no TLS"),
        "{}",
        shown.out
    );
    let json = place.run(&["status", "--output", "json"]).await.json();
    assert_eq!(json["access"]["tokens"], true);
    assert_eq!(json["access"]["allow"], json!(["127.0.0.0/8"]));
}

#[tokio::test]
async fn settings_that_guard_nothing_are_refused() {
    for (toml, expected) in [
        ("[tls]\nkey = \"/k\"\n", "tls.certificate: it needs"),
        ("[tls]\ncertificate = \"/c\"\n", "tls.key: it needs"),
        ("[tls]\nclient_ca = \"/c\"\n", "tls.certificate: it needs"),
        ("[access]\nallow = [\"10.0.0.1/8\"]\n", "bits set behind its mask"),
        (
            "[access]\ntokens_file = \"tokens\"\n",
            "access.tokens_file: 'tokens' is not a plain absolute path",
        ),
        ("admin_listen = \"9070\"\n", "'9070' is no address such as"),
        (
            "[[access.token]]\nname = \"a\"\nrole = \"read\"\nhash = \"not-to-be-told\"\n",
            "access.token: the hash of 'a' is no SHA-256",
        ),
        ("[[access.token]]\nname = \"a b\"\nrole = \"read\"\nhash = \"\"\n", "'a b' is no name"),
        (
            "[[access.token]]\nname = \"a\"\nrole = \"root\"\nhash = \"\"\n",
            "unknown variant `root`",
        ),
        ("[[access.certificate]]\nsan = \"x\"\nrole = \"read\"\n", "without tls.client_ca"),
        (
            "[tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_crl = \"/l\"\n",
            "tls.client_crl: it needs",
        ),
        ("[target]\nsocket_roots = [\"/\"]\n", "'/' cannot be opened to callers"),
        ("[target]\nsocket_roots = [\"/etc\"]\n", "'/etc' cannot be opened to callers"),
        ("[target]\nimage_tar_roots = [\"/root\"]\n", "'/root' cannot be opened to callers"),
        ("[target]\naio_roots = [\"/dev\"]\n", "'/dev' cannot be opened to callers"),
    ] {
        let ended = Place::on("two-node").settings(toml).run(&["config", "check"]).await;
        assert_eq!(ended.code, Some(2), "{toml}");
        assert!(ended.err.contains(expected), "{toml}: {}", ended.err);
        assert!(!ended.err.contains("not-to-be-told"), "{}", ended.err);
    }
}
