//! What the agent bears: bodies too long or too slow, connections that say nothing, too much at once.

use std::net::SocketAddr;

use crate::support::absent::Absent;
use crate::support::controller::Controller;
use crate::support::gate::Gate;
use crate::support::http::{call, receive, request, send};
use crate::support::{Place, process, soon, task, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";
const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_body_over_the_limit_is_refused_by_its_announced_length_without_being_read() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    for length in [MIB + 1, usize::MAX / 2] {
        let head =
            format!("POST /v1/prepare HTTP/1.1\r\nHost: n\r\nContent-Length: {length}\r\n\r\n");
        let reply = send(agent.address, head.as_bytes()).await;
        reply.must_be_problem(413, "body-too-large");
        assert!(reply.text().contains("1024 KiB"), "{}", reply.text());
    }
    let head = format!("POST {PREPARE} HTTP/1.1\r\nHost: n\r\nContent-Length: {}\r\n\r\n", MIB + 1);
    let reply = send(agent.address, head.as_bytes()).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "body-too-large"));
    assert_eq!(reply.json()["success"], false);
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused_when_it_gets_there() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    for path in ["/v1/prepare", PREPARE] {
        let stream = TcpStream::connect(agent.address).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let head = format!("POST {path} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n");
        writing.write_all(head.as_bytes()).await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        let sending = tokio::spawn(async move {
            // Sixteen of these are 1 MiB; the agent need not read what comes after.
            for _ in 0..17 {
                if writing.write_all(chunk.as_bytes()).await.is_err() {
                    break;
                }
            }
            writing
        });
        let reply = receive(&mut reading).await;
        assert_eq!((reply.status, reply.code().as_str()), (413, "body-too-large"), "{path}");
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn who_sends_all_of_a_refused_body_before_reading_gets_the_answer_and_no_reset() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    for framing in
        [format!("Content-Length: {}", 8 * MIB), "Transfer-Encoding: chunked".to_string()]
    {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let head = format!("POST /v1/prepare HTTP/1.1\r\nHost: n\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (size, end) = match framing.starts_with('C') {
            true => (String::new(), ""),
            false => (format!("{MIB:x}\r\n"), "\r\n"),
        };
        let piece = format!("{size}{}{end}", " ".repeat(MIB));
        for _ in 0..8 {
            stream.write_all(piece.as_bytes()).await.unwrap();
        }
        receive(&mut stream).await.must_be_problem(413, "body-too-large");
    }
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_read() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let body = format!("{}{{}}", " ".repeat(MIB - 2));
    assert_eq!(agent.post("/host/ping", &body).await.status, 200);
    let body = format!(" {body}");
    assert_eq!(agent.post("/host/ping", &body).await.status, 413);
    let small = Place::on("two-node").settings("[http]\nbody_limit_kib = 1\n");
    let agent = small.ready().await;
    assert_eq!(agent.post("/host/ping", &body[..1100]).await.status, 413);
}

#[tokio::test]
async fn a_body_that_is_too_slow_is_answered_408() {
    let place = Place::on("two-node").settings("[http]\nbody_timeout = \"200ms\"\n");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let half = "Content-Length: 100\r\n\r\n{\"hugepageNr\": ";
    let native = format!("POST /v1/prepare HTTP/1.1\r\nHost: n\r\n{half}");
    let reply = send(agent.address, native.as_bytes()).await;
    reply.must_be_problem(408, "body-timeout");
    let asynchronous = format!(
        "POST {PREPARE} HTTP/1.1\r\nHost: n\r\ntaskuuid: {}\r\ncallbackurl: {}\r\n{half}",
        task(1),
        controller.url
    );
    for form in [format!("POST {PREPARE} HTTP/1.1\r\nHost: n\r\n{half}"), asynchronous] {
        let reply = send(agent.address, form.as_bytes()).await;
        assert_eq!((reply.status, reply.code().as_str()), (408, "body-timeout"));
    }
    assert_eq!(controller.seen().len(), 0, "an answer other than 2xx is the whole answer");
}

#[tokio::test]
async fn a_body_that_breaks_off_harms_nobody() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let bytes = format!("POST {PREPARE} HTTP/1.1\r\nHost: n\r\nContent-Length: 100\r\n\r\n{{");
        stream.write_all(bytes.as_bytes()).await.unwrap();
        drop(stream);
    }
    assert_eq!(agent.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    let place = Place::on("two-node").settings("[http]\nheader_timeout = \"200ms\"\n");
    let agent = place.ready().await;
    for begun in ["", "G", "GET /healthz HTTP/1.1\r\nHost: n\r\n", "GET /healthz HTTP/1.1\r\nX: "] {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let end = soon("the agent closes it", stream.read_to_end(&mut rest)).await;
        assert!(end.is_err() || !rest.starts_with(b"HTTP/1.1 200"), "{begun}: {rest:?}");
    }
    let mut idle = TcpStream::connect(agent.address).await.unwrap();
    idle.write_all(request("GET", "/healthz", &[], "").as_bytes()).await.unwrap();
    assert_eq!(receive(&mut idle).await.status, 200);
    let mut rest = Vec::new();
    let _ = soon("the agent closes an idle connection", idle.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn silent_connections_delay_nobody_be_they_ten_or_a_thousand() {
    process::may_open_many_files();
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let mut silent = Vec::new();
    for count in [10, 1000] {
        while silent.len() < count {
            let mut stream = TcpStream::connect(agent.address).await.unwrap();
            if silent.len() % 2 == 0 {
                stream.write_all(b"POST /host/ping HTTP/1.1\r\nHo").await.unwrap();
            }
            silent.push(stream);
        }
        // Not the twenty seconds for each: for all of them.
        let calls = async {
            for _ in 0..50 {
                for path in ["/host/ping", "/zbs/primarystorage/vhost/target/health"] {
                    assert_eq!(agent.post(path, "{}").await.status, 200);
                }
            }
        };
        soon(&format!("a hundred calls beside {count} silent connections"), calls).await;
    }
}

#[tokio::test]
async fn a_listener_full_of_silent_connections_still_serves() {
    let place = Place::on("two-node").settings("[http]\nmax_connections = 40\n");
    let agent = place.ready().await;
    let mut silent = Vec::new();
    for source in 1..=5 {
        for _ in 0..20 {
            silent.push(connect_from(source, agent.address).await);
        }
    }
    for _ in 0..50 {
        assert_eq!(agent.post("/host/ping", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn bodies_that_never_come_block_no_listener() {
    let place = Place::on("two-node").settings("[http]\nmax_connections = 8\n");
    let agent = place.ready().await;
    let mut slow = Vec::new();
    for source in [1, 1, 1, 1, 1, 1, 2, 2, 2, 2] {
        let mut stream = connect_from(source, agent.address).await;
        let half = "POST /v1/prepare HTTP/1.1\r\nHost: n\r\nContent-Length: 10\r\n\r\n{";
        stream.write_all(half.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    for source in [1, 2, 3] {
        // Refused as long as the agent has not read that those before wait for their bodies.
        until("a ping is answered", async || {
            let mut stream = connect_from(source, agent.address).await;
            stream.write_all(request("POST", "/host/ping", &[], "{}").as_bytes()).await.unwrap();
            (receive(&mut stream).await.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_quiet_connection_gives_way_and_a_busy_listener_refuses() {
    let place = Place::on("two-node").mounted().settings("[http]\nmax_connections = 4\n");
    let agent = place.ready().await;
    let mut gate = Gate::before_pools(&place);
    let ping = request("POST", "/host/ping", &[], "{}");
    let mut quiet = connect_from(1, agent.address).await;
    quiet.write_all(ping.as_bytes()).await.unwrap();
    assert_eq!(receive(&mut quiet).await.status, 200);
    let mut at_work = Vec::new();
    for pages in 1..=3 {
        let body = format!(r#"{{"hugepages":[{{"pages":{pages}}}]}}"#);
        let mut stream = connect_from(1, agent.address).await;
        let bytes = request("POST", "/v1/prepare", &[("Connection", "close")], &body);
        stream.write_all(bytes.as_bytes()).await.unwrap();
        at_work.push(stream);
    }
    gate.wait().await;
    let mut rest = Vec::new();
    let _ = soon("the quiet one has given way", quiet.read_to_end(&mut rest)).await;
    for _ in 0..10 {
        let reply = call(agent.address, "POST", "/host/ping", &[], "{}").await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "too-many-connections"));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    // Three quarters are one peer's share: the last place is for others.
    let mut other = connect_from(2, agent.address).await;
    other.write_all(ping.as_bytes()).await.unwrap();
    assert_eq!(receive(&mut other).await.status, 200);
    gate.open().await;
    for mut stream in at_work {
        assert_eq!(receive(&mut stream).await.status, 200);
    }
    assert_eq!(agent.post("/host/ping", "{}").await.status, 200);
}

/// A connection from 127.0.0.`source`.
async fn connect_from(source: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, source], 0))).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_head_with_too_many_fields_or_too_long_is_refused() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    let head = |fields: usize, length: usize| {
        let field = format!("X: {}\r\n", "x".repeat(length));
        format!("GET /healthz HTTP/1.1\r\nHost: n\r\n{}\r\n", field.repeat(fields))
    };
    assert_eq!(send(agent.address, head(99, 10).as_bytes()).await.status, 200);
    assert_eq!(send(agent.address, head(100, 10).as_bytes()).await.status, 431);
    assert_eq!(send(agent.address, head(90, 1000).as_bytes()).await.status, 431);
    assert_eq!(agent.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn an_answer_that_nobody_fetches_is_given_up() {
    let place = Place::on("two-node").settings("[http]\nwrite_timeout = \"200ms\"\n");
    let agent = place.ready().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(agent.address).await.unwrap();
    let asks = request("GET", "/v1/node", &[], "").repeat(64);
    let flood = async {
        // It is broken off while more is asked for and nothing is read.
        while stream.write_all(asks.as_bytes()).await.is_ok() {}
    };
    soon("the agent closes it", flood).await;
    assert_eq!(agent.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_task_too_many_is_refused_with_503_and_taken_when_there_is_room() {
    let place = Place::on("two-node").mounted().settings("[http]\nmax_tasks = 2\n");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let body = r#"{"hugepageNr": 10}"#;
    for number in 1..=2 {
        let reply = agent.post_task(PREPARE, &task(number), &controller.url, body).await;
        assert_eq!(reply.status, 200);
    }
    gate.wait().await;
    let reply = agent.post_task(PREPARE, &task(3), &controller.url, body).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "too-many-tasks"));
    assert_eq!(reply.json()["success"], false);
    assert!(reply.text().contains("http.max_tasks"));
    let known = agent.post_task(PREPARE, &task(2), &controller.url, body).await;
    assert_eq!(known.status, 200, "a task that is at work is no new one");
    assert_eq!(agent.post("/host/ping", "{}").await.status, 200, "calls at once are none");
    gate.open().await;
    controller.wait(2).await;
    let again = agent.post_task(PREPARE, &task(3), &controller.url, body).await;
    assert_eq!((again.status, again.text()), (200, ""));
    let seen = controller.wait(3).await;
    assert_eq!(seen[2].header("taskuuid"), Some(task(3).as_str()));
}

#[tokio::test]
async fn a_task_whose_time_is_up_keeps_its_place_until_its_work_has_ended() {
    let place = Place::on("two-node").mounted().settings("[http]\nmax_tasks = 1\n");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let body = r#"{"hugepageNr":10,"taskContext":{"__messagetimeout__":"100"}}"#;
    agent.post_task(PREPARE, &task(1), &controller.url, body).await;
    gate.wait().await;
    assert_eq!(controller.wait(1).await[0].json()["code"], "task-timeout");
    let again = async || agent.post_task(PREPARE, &task(2), &controller.url, "{}").await;
    let reply = again().await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "too-many-tasks"));
    gate.open().await;
    until("there is room again", async || (again().await.status == 200).then_some(())).await;
    assert_eq!(controller.wait(2).await[1].header("taskuuid"), Some(task(2).as_str()));
}

#[tokio::test]
async fn calls_that_only_look_are_taken_while_those_that_change_the_node_are_too_many() {
    let place = Place::on("two-node").mounted().settings("[http]\nmax_tasks = 1\n");
    let agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let body = r#"{"hugepageNr": 10}"#;
    agent.post_task(PREPARE, &task(1), &controller.url, body).await;
    gate.wait().await;
    let refused = agent.post_task(PREPARE, &task(2), &controller.url, body).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "too-many-tasks"));
    assert!(refused.text().contains("1 calls that change the node"), "{}", refused.text());
    let look = agent.post_task("/host/ping", &task(3), &controller.url, "{}").await;
    assert_eq!(look.status, 200);
    assert_eq!(controller.wait(1).await[0].header("taskuuid"), Some(task(3).as_str()));
    gate.open().await;
    controller.wait(2).await;
}

#[tokio::test]
async fn two_thousand_calls_of_one_controller_at_once_are_all_taken_and_each_called_back_once() {
    const CALLS: u32 = 2000;
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    let controller = Controller::start().await;
    let mut gate = Gate::before_pools(&place);
    let body = r#"{"hugepageNr": 10}"#;
    agent.post_task(PREPARE, &task(0), &controller.url, body).await;
    gate.wait().await;
    // All are at work together, for the first one stands before the gate.
    let (address, url) = (agent.address, controller.url.clone());
    let callers = (0..50u32).map(|first| {
        let url = url.clone();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            for number in (1..CALLS).filter(|number| number % 50 == first) {
                let id = task(number);
                let headers = [("taskuuid", id.as_str()), ("callbackurl", url.as_str())];
                let bytes = request("POST", PREPARE, &headers, body);
                stream.write_all(bytes.as_bytes()).await.unwrap();
                let reply = receive(&mut stream).await;
                assert_eq!((reply.status, reply.text()), (200, ""));
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(controller.count(), 0);
    gate.open().await;
    // A machine that is at work on much else takes its time for so many.
    for part in (100..=CALLS as usize).step_by(100) {
        until("so many are called back", async || (controller.count() >= part).then_some(())).await;
    }
    assert_eq!(agent.stop().await.code(), Some(0));
    let seen = controller.seen();
    assert!(seen.iter().all(|call| call.json()["success"] == true));
    let tasks = seen.iter().map(|call| call.header("taskuuid").unwrap().to_string());
    let mut tasks: Vec<String> = tasks.collect();
    tasks.sort();
    assert_eq!(tasks, (0..CALLS).map(task).collect::<Vec<_>>());
}

#[tokio::test]
async fn no_work_is_taken_in_whose_result_would_have_no_place() {
    let place = Place::on("two-node").settings("[callbacks]\nmax_pending = 2\n");
    let agent = place.ready().await;
    let absent = Absent::new();
    for number in 1..=2 {
        let reply = agent.post_task("/host/ping", &task(number), &absent.url(), "{}").await;
        assert_eq!(reply.status, 200);
    }
    let reply = agent.post_task("/host/ping", &task(3), &absent.url(), "{}").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "outbox-full"));
    assert!(reply.text().contains("callbacks.max_pending"));
    let controller = absent.appears();
    controller.wait(2).await;
    until("there is room again", async || {
        let reply = agent.post_task("/host/ping", &task(3), &controller.url, "{}").await;
        (reply.status == 200).then_some(())
    })
    .await;
    controller.wait(3).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_work_of_others() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let mut gate = Gate::before_pools(&place);
    let bytes = request("POST", "/v1/prepare", &[], r#"{"hugepages":[{"pages":10}]}"#);
    let mut gone = TcpStream::connect(agent.address).await.unwrap();
    gone.write_all(bytes.as_bytes()).await.unwrap();
    gate.wait().await;
    let mut stays = TcpStream::connect(agent.address).await.unwrap();
    stays.write_all(bytes.as_bytes()).await.unwrap();
    drop(gone);
    gate.open().await;
    assert_eq!(receive(&mut stays).await.json()["outcome"], "holds");
}

#[tokio::test]
async fn too_many_different_prepares_at_once_are_refused_with_503() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let mut gate = Gate::before_pools(&place);
    let mut open = Vec::new();
    // Each wants more than those before it, so none can share another's outcome.
    for pages in 1..=40 {
        let body = format!(r#"{{"hugepages":[{{"pages":{pages}}}]}}"#);
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        stream.write_all(request("POST", "/v1/prepare", &[], &body).as_bytes()).await.unwrap();
        open.push(stream);
        if pages == 1 {
            gate.wait().await;
        }
    }
    gate.open().await;
    let (mut held, mut busy) = (0, 0);
    for mut stream in open {
        let reply = receive(&mut stream).await;
        match reply.status {
            200 => held += 1,
            _ => {
                reply.must_be_problem(503, "prepare-busy");
                busy += 1;
            }
        }
    }
    assert_eq!(held + busy, 40);
    assert!(held >= 17, "one at work and sixteen that wait: {held}");
}
