//! Meaning of what package managers print: the cause of a failure, its reason in their own words, and what an
//! installation would remove.

use self::Failure::{
    Conflict, Dates, DiskFull, Fetch, Interrupted, Locked, NotAvailable, Other, Untrusted,
};
use super::super::spawn::RunEnd;
use crate::model::engine::PackageManager;

/// Cause of a failed installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No configured repository has the packages, or what they need; packages of other names may be available.
    NotAvailable,
    /// The packages conflict with installed ones, or with what these need.
    Conflict,
    /// Listed packages, or the lists, could not be fetched: the lists may be stale, or the network is down.
    Fetch,
    /// A repository is not valid yet, or no longer, by the node's clock.
    Dates,
    /// The signature of the packages or of their repository cannot be verified.
    Untrusted,
    /// Another package manager holds the lock.
    Locked,
    /// An earlier run was interrupted.
    Interrupted,
    DiskFull,
    Other,
}

const NOT_AVAILABLE: [&str; 12] = [
    "Unable to locate package",
    "has no installation candidate",
    "is not installable",
    "Unable to find a match",
    "No match for argument",
    "No package ",
    "not found in package names",
    "No provider of",
    "Nothing provides",
    "nothing provides",
    "this requirement cannot be provided",
    "Error: Package: ",
];

/// Texts of each cause. The first one that an output has decides: a package that is missing hides that its repository
/// could not be fetched, for another set of packages may be in another repository ([`list_trouble`] has the rest).
const TEXTS: [(Failure, &[&str]); 9] = [
    // Messages that are printed while a lock is waited for are not among them: the run may get it after all, and fail for
    // another reason.
    (
        Locked,
        &[
            "E: Could not get lock",
            "Unable to acquire the dpkg frontend lock",
            "is another process using it",
            "System management is locked",
            "already locked by",
            "another copy is running as pid",
            "Another transaction is in progress",
            "can't create transaction lock on",
        ],
    ),
    (
        Interrupted,
        &[
            "dpkg was interrupted",
            "Try 'apt --fix-broken install'",
            "in a very bad inconsistent state",
        ],
    ),
    (
        DiskFull,
        &[
            "No space left on device",
            "You don't have enough free space",
            "more space needed on the",
            "more space on the",
            "MB on the ",
            "KB on the ",
            "inodes on the ",
        ],
    ),
    (
        Conflict,
        &[
            "but remove is disabled",
            " conflicts with ",
            "conflicts between attempted installs",
            " obsoletes ",
            ": Conflicts: ",
            ": Breaks: ",
            "trying to overwrite",
            "cannot install both",
            "conflicting assignments",
        ],
    ),
    (NotAvailable, &NOT_AVAILABLE),
    (
        Conflict,
        &[
            "unmet dependencies",
            "held broken packages",
            "none of the providers can be installed",
            "Unable to satisfy dependencies",
        ],
    ),
    (
        Dates,
        &[
            "is not valid yet",
            "is expired (invalid since",
            "Release file expired",
            "Not live until",
            "certificate is not yet valid",
            "certificate has expired",
            "uses not yet valid certificate",
            "uses expired certificate",
        ],
    ),
    (
        Untrusted,
        &[
            "is not signed",
            "is no longer signed",
            "is unsigned",
            "NO_PUBKEY",
            "EXPKEYSIG",
            "BADSIG",
            "Missing key",
            "signatures were invalid",
            "signatures couldn't be verified",
            "unauthenticated packages",
            "could not be authenticated",
            "GPG check FAILED",
            "GPG key retrieval failed",
            "GPG signature verification error",
            "not correct for this package",
            "Signature verification failed",
            "signed with an unknown key",
        ],
    ),
    (
        Fetch,
        &[
            "Failed to fetch",
            "Unable to fetch some archives",
            "Temporary failure resolving",
            "Could not resolve host",
            "Couldn't resolve host",
            "Could not connect to",
            "Network is unreachable",
            "No route to host",
            "does not have a Release file",
            "no longer has a Release file",
            "Failed to download",
            "Failed to synchronize cache",
            "Cannot download",
            "Cannot find a valid baseurl",
            "Cannot retrieve metalink",
            "Could not retrieve mirrorlist",
            "No more mirrors to try",
            "Curl error",
            "Download (curl) error",
            "Valid metadata not found",
        ],
    ),
];

fn says(output: &str, texts: &[&str]) -> bool {
    texts.iter().any(|text| output.contains(text))
}

/// Cause that `output` gives; `None` if no text of [`TEXTS`] is in it.
fn cause(output: &str) -> Option<Failure> {
    TEXTS.iter().find(|(_, texts)| says(output, texts)).map(|(cause, _)| *cause)
}

/// Classifies the failure of a run by its exit code and its output; `None` on success.
pub fn failure(manager: PackageManager, end: &RunEnd) -> Option<Failure> {
    let ended_well = match (manager, end.code) {
        // Success with a hint: a reboot or a restart is needed, a repository was skipped, a script of a package
        // failed (zypper(8), "EXIT CODES").
        (PackageManager::Zypper, Some(100..=103 | 106 | 107)) => true,
        (_, code) => code == Some(0),
    };
    match ended_well {
        true => partly(manager, end),
        false => Some(cause(&end.output).unwrap_or(Other)),
    }
}

/// Failure of a run that installed, or would install, only some of several packages, because the others do not exist: yum
/// counts that as a success.
fn partly(manager: PackageManager, end: &RunEnd) -> Option<Failure> {
    let is_partial = manager == PackageManager::Yum && says(&end.output, &NOT_AVAILABLE);
    is_partial.then_some(NotAvailable)
}

/// Texts with which dnf and yum end a simulation that found a way; they report failure then, as if an operator had
/// refused.
const RESOLVED: [&str; 2] = ["Operation aborted", "Exiting on user command"];

/// Failure of an installation that its simulation foretells; `None` if it may be tried.
pub fn foretold(manager: PackageManager, end: &RunEnd) -> Option<Failure> {
    if !would_remove(&end.output).is_empty() {
        return Some(Conflict);
    }
    match says(&end.output, &RESOLVED) {
        true => partly(manager, end),
        false => failure(manager, end).filter(|failure| *failure != Other),
    }
}

/// Packages that an installation would remove, from `output`, the text of a simulation or of apt's refusal.
pub fn would_remove(output: &str) -> Vec<&str> {
    let (mut removed, mut in_list, mut each_word) = (Vec::new(), false, false);
    for line in output.lines() {
        if !line.starts_with(' ') {
            // apt and zypper list names alone, dnf and yum one package per line with its details.
            each_word = line.ends_with("REMOVED:");
            in_list = each_word || line.starts_with("Removing") && line.ends_with(':');
            continue;
        }
        let mut words = line.split_whitespace();
        match (in_list, each_word) {
            (true, true) => removed.extend(words),
            (true, false) => removed.extend(words.next()),
            (false, _) if words.next() == Some("replacing") => removed.extend(words.next()),
            (false, _) => {}
        }
    }
    removed
}

/// Trouble with the lists of packages: its cause, and the first two lines of `end.output` about it; `None` if there is
/// none. apt reports success where it could not fetch a list, and continues with an old one or with none.
pub fn list_trouble(end: &RunEnd) -> Option<(Failure, String)> {
    let mut of_lists = TEXTS.iter().filter(|(cause, _)| matches!(cause, Dates | Untrusted | Fetch));
    of_lists.find_map(|(cause, texts)| {
        let lines = end.output.lines().map(str::trim).filter(|line| says(line, texts));
        let lines: Vec<&str> = lines.take(2).collect();
        (!lines.is_empty()).then(|| (*cause, lines.join(" | ")))
    })
}

/// Maximum of reasons in a text, the last ones, and of lines of each, the first ones.
const MOST_REASONS: usize = 3;
const MOST_LINES: usize = 12;

/// Texts of lines that give details of an error but do not begin like one: the lock's holder, packages in the way.
const DETAILS: [&str; 4] =
    ["held by process", "locked by", "The application with PID", "not installable providers"];
/// Beginnings of lines in which a package manager proposes what the agent does not do: to remove what is installed, or to
/// go on in spite of the failure.
const PROPOSALS: [&str; 3] = ["Solution ", "You could try ", "(try to add "];

/// `true` if `line` reports an error, or begins to.
fn reports_error(line: &str) -> bool {
    let begins =
        ["E:", "Error", "Problem", "Failed", "dpkg: error"].iter().any(|it| line.starts_with(it));
    begins || line.contains("rror:") || says(line, &DETAILS) || cause(line).is_some()
}

/// Reasons of a failure in `output`, each with the lines that belong to it, such as those below dnf's `Error:`; if there
/// are none, the last three lines.
pub fn reason_lines(output: &str) -> String {
    let (mut reasons, mut goes_on): (Vec<Vec<&str>>, bool) = (Vec::new(), false);
    for line in output.split(['\n', '\r']) {
        let text = line.trim();
        if text.is_empty() || PROPOSALS.iter().any(|it| text.starts_with(it)) {
            goes_on = false;
            continue;
        }
        let belongs = goes_on && (line.starts_with([' ', '\t']) || line.starts_with("- "));
        match reasons.last_mut().filter(|_| belongs) {
            Some(reason) => reason.push(text),
            None => {
                goes_on = reports_error(text);
                reasons.extend(goes_on.then(|| vec![text]));
            }
        }
    }
    reasons.dedup();
    if reasons.is_empty() {
        let lines = output.lines().map(str::trim).filter(|line| !line.is_empty());
        reasons = lines.map(|line| vec![line]).collect();
    }
    let first = reasons.len().saturating_sub(MOST_REASONS);
    reasons[first..].iter().map(|lines| joined(lines)).collect::<Vec<_>>().join(" | ")
}

/// Joins the lines of a reason.
fn joined(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines.iter().take(MOST_LINES) {
        let separator = match text.chars().next_back() {
            None => "",
            Some(':') => " ",
            Some(_) => " | ",
        };
        text.push_str(separator);
        text.push_str(line);
    }
    match lines.len().saturating_sub(MOST_LINES) {
        0 => text,
        more => format!("{text} | and {more} lines more"),
    }
}

#[cfg(test)]
#[path = "failure_tests.rs"]
mod tests;
