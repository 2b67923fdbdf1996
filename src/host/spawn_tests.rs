//! Processes, run for real.

use std::fs;

use tokio::time::timeout;

use super::*;
use crate::host::Root;
use crate::host::pidfd::WatchedProcess;

async fn run(script: &str, within: Duration) -> (RunEnd, Vec<String>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let shell = Invocation {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("WORD".into(), "said".into())],
    };
    let (sender, mut lines) = mpsc::channel(64);
    let end = Processes::new(folder.path())
        .run(RunRequest { invocation: shell, within, lines: sender })
        .await
        .unwrap();
    let mut received = Vec::new();
    while let Ok(line) = lines.try_recv() {
        received.push(line);
    }
    (end, received, folder)
}

#[tokio::test]
async fn a_run_returns_lines_exit_code_and_log_path() {
    let (end, lines, _folder) = run(
        "echo $WORD; printf 'half '; sleep 0.05; echo line >&2; exit 3",
        Duration::from_secs(10),
    )
    .await;
    assert_eq!((end.code, end.timed_out), (Some(3), false));
    assert_eq!(lines, ["said", "half line"]);
    assert_eq!(end.output, "said\nhalf line\n");
    assert_eq!(fs::read_to_string(&end.log).unwrap(), end.output);
}

#[tokio::test(start_paused = true)]
async fn without_a_watch_a_log_is_looked_at_every_second() {
    let began = Instant::now();
    grown(None).await;
    assert_eq!(began.elapsed(), LOOK_AGAIN);
}

#[tokio::test]
async fn a_run_that_the_kernel_has_no_watch_for_is_a_run_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let full = |path: &Path| {
        let source = nix::errno::Errno::EMFILE.into();
        Err(HostError::Watch { path: path.to_owned(), source })
    };
    let echo = Invocation { program: "echo".into(), args: vec!["word".into()], env: vec![] };
    let (sender, mut lines) = mpsc::channel(8);
    let processes = Processes::new(folder.path());
    let run = RunRequest { invocation: echo, within: Duration::from_secs(10), lines: sender };
    let end = processes.run_watched(run, full).await.unwrap();
    assert_eq!((end.code, end.output.as_str()), (Some(0), "word\n"));
    assert_eq!(lines.recv().await.as_deref(), Some("word"));
}

#[tokio::test]
async fn children_find_what_lies_in_the_sbin_folders() {
    let (end, ..) = run("echo $PATH", Duration::from_secs(10)).await;
    let folders: Vec<&str> = end.output.trim().split(':').collect();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        assert!(folders.contains(&folder), "{}", end.output);
    }
}

#[tokio::test]
async fn last_words_in_a_log_that_was_rotated_meanwhile_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("d.log");
    fs::write(&log, "new\n").unwrap();
    assert_eq!(tail_from(&log, 4096).await, "new\n");
    fs::write(&log, "before\nnew\n").unwrap();
    assert_eq!(tail_from(&log, 7).await, "new\n");
}

#[tokio::test]
async fn a_run_whose_time_is_up_goes_on_without_us_in_a_session_of_its_own() {
    let script = "echo $$; cut -d ' ' -f 6 /proc/$$/stat; exec sleep 60";
    let (end, lines, _folder) = run(script, Duration::from_millis(500)).await;
    assert_eq!((end.code, end.timed_out), (None, true));
    let pid: i32 = lines[0].parse().unwrap();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(name.trim(), "sleep");
    assert_eq!(lines[1], lines[0], "it leads its session");
}

#[tokio::test]
async fn a_run_is_separated_from_the_one_before_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let processes = Processes::new(folder.path());
    for word in ["first", "second"] {
        let echo = Invocation { program: "echo".into(), args: vec![word.into()], env: Vec::new() };
        let (sender, _lines) = mpsc::channel(1);
        let run = RunRequest { invocation: echo, within: Duration::from_secs(10), lines: sender };
        let end = processes.run(run).await.unwrap();
        assert_eq!(end.output, format!("{word}\n"));
    }
}

#[tokio::test]
async fn a_daemon_that_exits_returns_its_last_lines() {
    let folder = tempfile::tempdir().unwrap();
    let false_start = Invocation {
        program: "sh".into(),
        args: vec!["-c".into(), "echo no cgroups >&2; exit 1".into()],
        env: Vec::new(),
    };
    let mut daemon = Processes::new(folder.path()).daemon(false_start, "d.log").await.unwrap();
    assert_eq!(daemon.ended().await, (Some(1), "no cgroups\n".to_string()));
    assert_eq!(daemon.log(), folder.path().join("d.log"));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let nobody =
        Invocation { program: "no-such-program".into(), args: Vec::new(), env: Vec::new() };
    let error = Processes::new(folder.path()).daemon(nobody, "d.log").await.unwrap_err();
    assert!(error.to_string().starts_with("cannot start no-such-program"), "{error}");
}

async fn answer(script: &str, within: Duration) -> QueryEnd {
    let args = vec!["-c".into(), script.into()];
    let shell = Invocation { program: "/bin/sh".into(), args, env: Vec::new() };
    query::ask(shell, within).await.unwrap()
}

#[tokio::test]
async fn a_query_returns_what_the_program_printed_and_its_exit_code() {
    let end = answer("echo said; echo wrong >&2; exit 3", Duration::from_secs(10)).await;
    assert_eq!((end.code, end.timed_out), (Some(3), false));
    assert_eq!(end.output, "said\nwrong\n");
    let long = answer("yes | head -c 100000; echo end", Duration::from_secs(10)).await;
    assert!(long.output.len() <= 8 * 1024 && long.output.ends_with("end\n"));
}

#[tokio::test]
async fn a_query_whose_time_is_up_is_killed_with_all_that_it_started() {
    let end = answer("sleep 60 & echo $! $$; wait", Duration::from_millis(500)).await;
    assert_eq!((end.code, end.timed_out), (None, true));
    let pids: Vec<&str> = end.output.split_whitespace().collect();
    assert_eq!(pids.len(), 2, "{}", end.output);
    for pid in pids {
        // The kernel ends a killed process some time after the kill, and who reaps it may take longer still.
        if let Some(process) = WatchedProcess::of(&Root::new("/"), pid.parse().unwrap()) {
            let ended = timeout(Duration::from_secs(10), process.ended()).await;
            assert!(ended.is_ok(), "process {pid} lives");
        }
    }
}

#[tokio::test]
async fn a_query_ends_with_its_program_whatever_holds_its_output_open() {
    let began = Instant::now();
    let end = answer("echo said; sleep 30 & exit 3", Duration::from_secs(20)).await;
    assert_eq!((end.code, end.timed_out, end.output.as_str()), (Some(3), false, "said\n"));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_query_dies_before_the_agent_and_without_it() {
    let script = "cat /proc/self/oom_score_adj; tr '\\0' ' ' </proc/$PPID/cmdline";
    let end = answer(script, Duration::from_secs(10)).await;
    let (score, parent) = end.output.split_once('\n').unwrap();
    assert_eq!(score, "500");
    assert!(parent.contains("timeout -s KILL 15 /bin/sh -c"), "{parent}");
}

#[tokio::test]
async fn a_query_of_a_program_that_is_not_there_names_it() {
    let nobody = Invocation { program: "/no/such".into(), args: Vec::new(), env: Vec::new() };
    let error = query::ask(nobody, Duration::from_secs(10)).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot start /no/such"), "{error}");
}
