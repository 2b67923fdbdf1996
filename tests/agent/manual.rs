//! The manual page, `packaging/man/vhost-agent.8`, is what the definition of the command line says.

use std::{env, fs};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use vhost_agent::cli::Arguments;

/// Set to write the page instead of comparing it.
const WRITE: &str = "VHOST_AGENT_WRITE_DOCS";
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/man/vhost-agent.8");

/// What the definition does not say.
const MORE: &str = r#".SH "EXIT STATUS"
.TP
0
It holds, or holds now.
.TP
1
It failed.
.TP
2
Wrong usage or settings.
.TP
3
A plan or a dry run that would change something.
.SH FILES
.TP
/etc/vhost\-agent/config.toml, /etc/vhost\-agent/config.d/*.toml
Settings, with their defaults in the comments.
.TP
/var/lib/vhost\-agent
State: desired targets and volumes, reserved hugepages, pending results.
.TP
/run/vhost\-agent, /run/vhost\-agent.sock
What a boot empties; the socket for commands.
.TP
/var/log/vhost\-agent
Output of package managers and of the engine.
.TP
/usr/share/doc/vhost\-agent
Documents: operations.md, security.md, http\-api.md, configuration.md and others; examples.
.SH "SEE ALSO"
.BR systemd (1),
.BR journalctl (1),
.BR docker (1)
"#;

#[test]
fn manual_page_says_what_the_command_line_takes() {
    if env::var_os(WRITE).is_some() {
        fs::write(PAGE, page()).unwrap();
    }
    let written = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page(), "{PAGE} is old: run this test with {WRITE}=1");
}

fn page() -> String {
    // The exit codes in its help have a section of their own.
    let agent = Arguments::command().after_help(None::<&str>).disable_help_subcommand(true);
    let commands: Vec<_> = agent.get_subcommands().cloned().collect();
    // A date would differ with each release; an empty one is left out by clap_mangen, with its place.
    let man = Man::new(agent).section("8").date(" ").manual("System administration");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    let mut page = String::from_utf8(page).unwrap();
    for (heading, part) in [
        ("NAME", body(|out| man.render_name_section(out))),
        ("SYNOPSIS", body(|out| man.render_synopsis_section(out))),
        ("OPTIONS", body(|out| man.render_options_section(out))),
    ] {
        page += &format!(".SH {heading}\n{part}");
    }
    page += ".SH COMMANDS\n";
    for command in commands {
        page += &section("vhost-agent", command);
    }
    page + MORE
}

/// Subsection of a command, or those of its subcommands.
fn section(parent: &str, command: Command) -> String {
    let name = format!("{parent} {}", command.get_name());
    let nested: Vec<_> = command.get_subcommands().cloned().collect();
    if !nested.is_empty() {
        return nested.into_iter().map(|command| section(&name, command)).collect();
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command.bin_name(name.clone()).disable_help_flag(true));
    let synopsis = body(|out| man.render_synopsis_section(out));
    let options = body(|out| man.render_options_section(out));
    format!(".SS \"{name}\"\n{about}.\n.PP\n{synopsis}{options}")
}

/// Text of a section without its heading and the preamble of a page.
fn body(render: impl Fn(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    render(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines =
        text.lines().filter(|line| ![".SH", ".ie", ".el"].iter().any(|it| line.starts_with(it)));
    lines.map(|line| format!("{line}\n")).collect()
}
