//! Arguments, settings, log, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use vhost_agent::cli::{Arguments, run};

fn main() -> ExitCode {
    run(Arguments::parse())
}
