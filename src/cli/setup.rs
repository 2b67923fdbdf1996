//! `vhost-agent setup`: access of callers to this agent, written as one file of settings and checked before.
//!
//! The file has all options of the command, so that the same command twice changes nothing. Of tokens only the hashes
//! are stored. A token that exists under the same name is kept.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::render::{print, print_json, warnings};
use super::{Output, Usage, exit};
use crate::config::{
    Access, CertificateRule, Loaded, Overrides, Settings, TokenRule, environment, load, previous,
};
use crate::daemon::check_access;
use crate::model::access::Role;
use crate::model::network::Network;
use crate::model::node::Exposure;
use crate::store::{Durability, replace_file};

/// Path of the file, from the folder of the settings file. Its number lets files of the operator come later and
/// override it.
const FILE: &str = "config.d/10-access.toml";
/// Header of the file.
const HEAD: &str = "# Written by `vhost-agent setup`, which replaces it as a whole: own settings belong into another file.\n\
    # Its lists have in them what other files listed at that time: what is taken out there has to be taken out here too.\n";
/// Path of the targets' images on ZStack's management node.
const IMAGES: &str = "8080/zstack/static/zbs-vhost/";

/// Access to set up.
#[derive(Debug, Args)]
pub(super) struct SetupArgs {
    /// Address or network of the controller, such as 10.0.0.5 or 10.0.0.0/24; of each, if there are several
    #[arg(long, required = true, value_name = "ADDRESS", num_args = 1..)]
    controller: Vec<String>,
    /// Token by name, with a role: read, volumes, deploy or admin. It is printed once. With any, every caller has to
    /// present one, and ZStack's own controller presents none
    #[arg(long, value_name = "NAME:ROLE")]
    token: Vec<String>,
    /// Certificate of the agent, PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<String>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<String>,
    /// CA of the callers' certificates, PEM: each caller has to present one, with one of the names in --client-name
    #[arg(long, value_name = "FILE", requires = "certificate", requires = "client_name")]
    client_ca: Option<String>,
    /// Revocation list of that CA, PEM
    #[arg(long, value_name = "FILE", requires = "client_ca")]
    client_crl: Option<String>,
    /// Name in a caller's certificate (`*` matches anything), with a role
    #[arg(long, value_name = "NAME:ROLE", requires = "client_ca")]
    client_name: Vec<String>,
    /// Let callers name the images that these controllers serve themselves, as ZStack does
    #[arg(long)]
    controller_images: bool,
    /// Remove entries of an earlier set-up that this one does not name
    #[arg(long)]
    drop: bool,
    /// Images that callers may name beside the usual ones, such as 10.0.0.5:5000/zbs-vhost
    #[arg(long, value_name = "PATTERN")]
    image: Vec<String>,
    /// Show what would be written; changes nothing
    #[arg(long)]
    dry_run: bool,
}

/// Content of the file, in the order in which it is written.
#[derive(Debug, Default, Serialize)]
struct SetupFile {
    access: AccessPart,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsPart>,
    target: TargetPart,
}

#[derive(Debug, Default, Serialize)]
struct AccessPart {
    allow: Vec<Network>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    token: Vec<TokenRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificate: Vec<CertificateRule>,
}

#[derive(Debug, Serialize)]
struct TlsPart {
    certificate: String,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_crl: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct TargetPart {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    image_urls: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_images: Vec<String>,
}

/// Outcome, as a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SetupOutcome {
    outcome: &'static str,
    file: PathBuf,
    access: Exposure,
    /// Newly created tokens.
    tokens: Vec<NewToken>,
}

#[derive(Debug, Serialize)]
struct NewToken {
    name: String,
    token: String,
}

pub(super) fn run(overrides: Overrides, args: &SetupArgs, output: Output) -> Result<u8> {
    let (named, file) = (overrides.settings_file(), FILE);
    let file = named.with_file_name(file);
    let before = previous(&file)?;
    let kept = before.as_ref().map(|(_, settings)| settings.access.token.clone());
    let kept = kept.unwrap_or_default();
    // Lists of the same name in other files would be lost: this file comes after them.
    let without = Overrides { replaced: Some((file.clone(), String::new())), ..overrides.clone() };
    let others = load(&without, environment())?.settings;
    let (written, mut tokens) = args.written(&kept, &others)?;
    if args.dry_run {
        tokens.clear();
    }
    let text = toml::to_string(&written).context("the settings cannot be written down")?;
    let text = format!("{HEAD}{text}");
    if let Some((there, _)) = before.as_ref().filter(|_| !args.drop) {
        validate_dropped(there, &text)?;
    }
    let holds = before.as_ref().is_some_and(|(there, _)| *there == text);
    let overrides = Overrides { replaced: Some((file.clone(), text.clone())), ..overrides };
    let Loaded { settings, .. } = load(&overrides, environment())?;
    let warning = check_access(&settings)?;
    if let Some(missing) =
        written.access.allow.iter().find(|it| !settings.access.allow.contains(it))
    {
        bail!(
            "another file of settings, which comes after {}, sets access.allow without {missing}: take access.allow out of that one, \
             or name the controller there",
            file.display()
        );
    }
    let outcome = match (holds, args.dry_run) {
        (true, _) => "holds",
        (false, true) => "wouldChange",
        (false, false) => {
            write(&file, &text)?;
            "changed"
        }
    };
    let mut access = settings.exposure(settings.listen);
    access.warnings.extend(warning);
    let done = SetupOutcome { outcome, file, access, tokens };
    match output {
        Output::Json => print_json(&done)?,
        Output::Table if args.dry_run && !holds => {
            print(&format!("{}:\n{text}", done.file.display()))?
        }
        Output::Table => print(&done.text(args, settings.listen))?,
    }
    Ok(if outcome == "wouldChange" { exit::WOULD_CHANGE } else { exit::HOLDS })
}

/// Refuses to remove an entry of the existing file, set earlier or by hand: without it, callers may be admitted that it
/// kept out.
///
/// # Errors
/// The entry that would be lost.
fn validate_dropped(there: &str, text: &str) -> Result<()> {
    let table = |text: &str| text.parse::<toml::Table>().context("the settings cannot be compared");
    let Some(key) = dropped(&table(there)?, &table(text)?) else { return Ok(()) };
    bail!(Usage(format!(
        "an earlier set-up, or somebody by hand, has set {key} there, and this would take that away: name it again, or say --drop"
    )))
}

/// First key of `before` that is missing in `after`, or has fewer values there.
fn dropped(before: &toml::Table, after: &toml::Table) -> Option<String> {
    use toml::Value::{Array, Table};
    before.iter().find_map(|(key, value)| match (value, after.get(key)) {
        (_, None) => Some(key.clone()),
        (Table(value), Some(Table(other))) => {
            dropped(value, other).map(|within| format!("{key}.{within}"))
        }
        (Array(values), Some(Array(others))) => {
            values.iter().any(|value| !others.contains(value)).then(|| key.clone())
        }
        _ => None,
    })
}

fn write(file: &Path, text: &str) -> Result<()> {
    let written = crate::store::make_folder(file)
        .and_then(|()| replace_file(file, text.as_bytes(), 0o640, None, Durability::Disk));
    written.with_context(|| format!("{} cannot be written", file.display()))
}

impl SetupArgs {
    /// Content of the file, with existing tokens unchanged, and the new tokens.
    fn written(&self, kept: &[TokenRule], others: &Settings) -> Result<(SetupFile, Vec<NewToken>)> {
        let Access { allow, token, certificate, .. } = &others.access;
        let mut allow = allow.clone();
        for text in &self.controller {
            let network = network(text)?;
            if !allow.contains(&network) {
                allow.push(network);
            }
        }
        let own = |rule: &&TokenRule| !self.token.is_empty() && !kept.contains(rule);
        let (mut token, mut new) = (token.iter().filter(own).cloned().collect::<Vec<_>>(), vec![]);
        for text in &self.token {
            let (name, role) = named_role("--token", text)?;
            let hash = match kept.iter().find(|rule| rule.name == name) {
                Some(rule) => rule.hash.clone(),
                None => {
                    let made = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
                    let digest = Sha256::digest(made.as_bytes());
                    new.push(NewToken { name: name.clone(), token: made });
                    digest.iter().map(|byte| format!("{byte:02x}")).collect()
                }
            };
            token.push(TokenRule { name, hash, role });
        }
        let mut certificate = match self.client_name.is_empty() {
            true => Vec::new(),
            false => certificate.clone(),
        };
        for text in &self.client_name {
            let (san, role) = named_role("--client-name", text)?;
            let (subject, role) = (String::new(), Some(role));
            certificate.push(CertificateRule { subject, san, role });
        }
        let tls =
            self.certificate.clone().zip(self.key.clone()).map(|(certificate, key)| TlsPart {
                certificate,
                key,
                client_ca: self.client_ca.clone(),
                client_crl: self.client_crl.clone(),
            });
        let served = self.controller.iter().filter_map(|text| images_of(text));
        let image_urls = match self.controller_images {
            true => others.target.image_urls.iter().cloned().chain(served).collect(),
            false => Vec::new(),
        };
        let access = AccessPart { allow, token, certificate };
        let usual = others.target.allowed_images.iter();
        let allowed_images = match self.image.is_empty() {
            true => Vec::new(),
            false => usual.chain(&self.image).cloned().collect(),
        };
        Ok((SetupFile { access, tls, target: TargetPart { image_urls, allowed_images } }, new))
    }
}

fn network(text: &str) -> Result<Network> {
    let network = text.parse::<Network>().map_err(|why| {
        Usage(format!(
            "--controller: {why}; names are not taken, for whoever answers for them could call"
        ))
    })?;
    Ok(network)
}

/// URL of the images that the controller at one address serves; `None` if `controller` is a network.
fn images_of(controller: &str) -> Option<String> {
    let address: std::net::IpAddr = controller.parse().ok()?;
    match address {
        std::net::IpAddr::V4(address) => Some(format!("http://{address}:{IMAGES}")),
        std::net::IpAddr::V6(address) => Some(format!("http://[{address}]:{IMAGES}")),
    }
}

fn named_role(flag: &str, text: &str) -> Result<(String, Role)> {
    let wrong = || {
        Usage(format!(
            "{flag}: '{text}' is no NAME:ROLE with one of the roles read, volumes, deploy, admin"
        ))
    };
    let (name, role) = text.rsplit_once(':').ok_or_else(wrong)?;
    let role = serde_json::from_value(role.into()).map_err(|_| wrong())?;
    if name.is_empty() {
        bail!(wrong());
    }
    Ok((name.to_string(), role))
}

impl SetupOutcome {
    fn text(&self, args: &SetupArgs, listen: SocketAddr) -> String {
        let SetupOutcome { outcome, file, access, tokens } = self;
        let did = if *outcome == "holds" { "holds already" } else { "written" };
        let mut text = format!("{did}: {}\nwho may call: {}\n", file.display(), access.text());
        text += &warnings(access);
        text += "\nthe controller's side needs\n";
        let scheme = if access.tls { "https" } else { "http" };
        text += &format!("  address      {scheme}://ADDRESS-OF-THIS-NODE:{}\n", listen.port());
        for NewToken { name, token } in tokens {
            text +=
                &format!("  token        of {name}, shown once: Authorization: Bearer {token}\n");
        }
        if args.client_ca.is_some() {
            text +=
                "  certificate  one of the authority in --client-ca, for clients (clientAuth)\n";
        }
        if access.tokens || access.client_certificates {
            text += "  note         ZStack's own controller shows neither token nor certificate\n";
        }
        text += "\nin force with the next start: systemctl restart vhost-agent (targets go on meanwhile)\n";
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(controller: &[&str], token: &[&str]) -> SetupArgs {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        SetupArgs {
            controller: owned(controller),
            token: owned(token),
            certificate: None,
            key: None,
            client_ca: None,
            client_crl: None,
            client_name: Vec::new(),
            image: Vec::new(),
            controller_images: true,
            drop: false,
            dry_run: false,
        }
    }

    #[test]
    fn controllers_are_addresses_and_their_images_are_allowed_with_them() {
        let (written, _) = args(&["10.0.0.5", "fd00::5", "10.1.0.0/16"], &[])
            .written(&[], &Settings::default())
            .unwrap();
        assert_eq!(written.access.allow.len(), 3);
        assert_eq!(
            written.target.image_urls,
            [
                "http://10.0.0.5:8080/zstack/static/zbs-vhost/",
                "http://[fd00::5]:8080/zstack/static/zbs-vhost/"
            ]
        );
        for wrong in ["mn.example", "", "10.0.0.1/8"] {
            assert!(args(&[wrong], &[]).written(&[], &Settings::default()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn token_is_made_once_and_only_its_hash_is_kept() {
        let args = args(&["10.0.0.5"], &["controller:deploy"]);
        let others = Settings::default();
        let (written, new) = args.written(&[], &others).unwrap();
        let rule = &written.access.token[0];
        assert_eq!(
            (rule.name.as_str(), rule.role, new[0].token.len()),
            ("controller", Role::Deploy, 64)
        );
        assert!(rule.digest().is_some() && rule.hash != new[0].token);
        let (again, none) = args.written(&written.access.token, &others).unwrap();
        assert_eq!((&again.access.token, none.len()), (&written.access.token, 0));
        for wrong in ["controller", ":admin", "a:root"] {
            let mut wrong_one = super::tests::args(&["10.0.0.5"], &[wrong]);
            wrong_one.dry_run = true;
            assert!(wrong_one.written(&[], &others).is_err(), "{wrong}");
        }
    }
}
