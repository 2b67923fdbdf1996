//! Access control: roles, callers as far as they are authenticated, and the rules that authorize them. Pure.
//!
//! ```text
//! Peer (address, uid, certificate) ─┐
//! PresentedToken of the request ────┴▶ Rules::authorize ──▶ Principal (name, role) ──▶ route's role ──▶ handler
//!                                             └──▶ Denied: 401, 403
//! ```

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::code::Code;
use super::fault::Fault;
use super::network::Network;

/// Rights of a caller; each role has those of the roles before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read status, health, metrics and events.
    Read,
    /// Activate, deactivate and resize volumes in targets that run.
    Volumes,
    /// Prepare the node, deploy and destroy targets.
    Deploy,
    /// Every route, those of the legacy agent included.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Read => "read",
            Role::Volumes => "volumes",
            Role::Deploy => "deploy",
            Role::Admin => "admin",
        })
    }
}

/// Name and role of a token or a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Name for the audit log, such as `token controller`.
    pub name: Arc<str>,
    pub role: Role,
}

/// Peer of a connection, as far as the connection itself proves its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub caller: Caller,
    /// `true` if the peer is on this node.
    pub is_local: bool,
    /// User of a peer on this node, if the kernel reports it.
    pub uid: Option<u32>,
    /// Name and role of the peer's certificate.
    pub certificate: Option<Credential>,
    /// Name for the audit log if neither a token nor a certificate is shown.
    name: Arc<str>,
}

impl Peer {
    /// Builds a peer on another machine, without a certificate.
    pub fn elsewhere(caller: Caller) -> Peer {
        let name = caller.to_string().into();
        Peer { caller, is_local: false, uid: None, certificate: None, name }
    }

    /// Builds a peer on this node, without a certificate.
    pub fn local(caller: Caller, uid: Option<u32>) -> Peer {
        let name = match uid {
            Some(uid) => format!("uid {uid}"),
            None => caller.to_string(),
        };
        Peer { caller, is_local: true, uid, certificate: None, name: name.into() }
    }

    /// Copies the peer without its user: for root in a container of this node, and for root of whom that cannot be
    /// ruled out.
    pub fn contained(&self) -> Peer {
        let name = "root, perhaps of a container,".into();
        Peer { uid: None, name, ..self.clone() }
    }

    /// `true` for root on this node, as the kernel reports.
    pub fn is_root(&self) -> bool {
        self.is_local && self.uid == Some(0)
    }

    /// `true` for a user of this node other than root, or one of whom the kernel reports nothing.
    fn is_other_user(&self) -> bool {
        self.is_local && !self.is_root()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.certificate.as_ref().map_or(&self.name, |certificate| &certificate.name))
    }
}

/// Authorized caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Name for the audit log.
    pub name: Arc<str>,
    pub role: Role,
    pub caller: Caller,
    /// `true` if the caller is root on this node.
    pub is_root: bool,
    /// `true` if the caller is on this node.
    pub is_local: bool,
}

impl Principal {
    /// Builds a principal with the name of `peer` and the role `role`.
    pub fn of(peer: &Peer, role: Role) -> Principal {
        let name = peer.name.clone();
        let (caller, is_local) = (peer.caller, peer.is_local);
        Principal { name, role, caller, is_root: peer.is_root(), is_local }
    }

    /// Principal for a command that this process runs itself.
    pub fn command() -> Principal {
        let name = "command".into();
        let (role, caller) = (Role::Admin, Caller::Here);
        Principal { name, role, caller, is_root: true, is_local: true }
    }

    /// Checks that the caller has at least the role `needed`.
    ///
    /// # Errors
    /// `role-insufficient`, with what would help.
    pub fn may(&self, needed: Role) -> Result<(), Fault> {
        if self.role >= needed {
            return Ok(());
        }
        let Principal { name, role, .. } = self;
        let advice = match self.is_local {
            true => {
                "over TCP, a user of this node who is not root may only look: call as root, use the agent's own socket \
                 (access.socket), or show a token"
            }
            false => "show another token or certificate (access.token, access.certificate)",
        };
        let text = format!("{name} has the role {role}, and this wants {needed}: {advice}");
        Err(Fault::new(Code::RoleInsufficient, text))
    }
}

/// Token of a request, looked up among those of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresentedToken<'a> {
    /// No token.
    Nothing,
    /// Unknown token, or more than one.
    Unknown,
    Token(&'a Credential),
}

/// Access rules of the operator's settings, without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// `true` if every caller may do everything where no address, token or certificate is required.
    pub open: bool,
    /// Networks from which callers are accepted; empty for all.
    pub allow: Vec<Network>,
    /// `true` if each request has to show a token.
    pub tokens: bool,
    /// `true` if each connection has to show a certificate.
    pub certificates: bool,
}

impl Rules {
    /// Rules of a listener that serves only what is open to all.
    pub fn open() -> Rules {
        Rules { open: true, ..Rules::default() }
    }

    /// `true` if a connection of `peer` is accepted at all. Root on this node is accepted from any address, because
    /// root could change the rules anyway.
    pub fn let_in(&self, peer: &Peer) -> bool {
        match peer.caller {
            Caller::Here => true,
            Caller::At(_) if peer.is_root() => true,
            Caller::At(address) => {
                self.allow.is_empty() || self.allow.iter().any(|network| network.has(address))
            }
        }
    }

    /// `true` if the rules mean this very address of the node: it is loopback, or listed in `allow` as a single
    /// address, such as that of a controller on the same node. A listed network that contains the address is meant for
    /// other machines.
    fn names(&self, caller: Caller) -> bool {
        let Caller::At(address) = caller else { return true };
        address.is_loopback() || self.allow.iter().any(|network| network.only() == Some(address))
    }

    /// Authorizes a request on an accepted connection.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn authorize(&self, peer: &Peer, shown: PresentedToken<'_>) -> Result<Principal, Denied> {
        // Checked again, because a peer that was let in as root may have turned out not to be root since.
        if !self.let_in(peer) {
            return Err(Denied::Address);
        }
        let is_root = peer.is_root();
        let as_one = |name: &Arc<str>, role| {
            Ok(Principal { name: name.clone(), ..Principal::of(peer, role) })
        };
        if peer.caller == Caller::Here {
            return as_one(&peer.name, Role::Admin);
        }
        let certificate = match (&peer.certificate, self.certificates) {
            (None, true) => return Err(Denied::CertificateUnknown),
            (certificate, _) => certificate.as_ref(),
        };
        match (shown, self.tokens, certificate) {
            (PresentedToken::Nothing, true, _) => Err(Denied::TokenMissing),
            (PresentedToken::Unknown, true, _) => Err(Denied::TokenWrong),
            (PresentedToken::Token(token), true, certificate) => {
                let most = certificate.map_or(Role::Admin, |certificate| certificate.role);
                as_one(&token.name, token.role.min(most))
            }
            (_, false, Some(certificate)) => as_one(&certificate.name, certificate.role),
            (_, false, None) if self.open && self.allow.is_empty() || is_root => {
                as_one(&peer.name, Role::Admin)
            }
            (_, false, None) if !self.allow.is_empty() => {
                let means_it = !peer.is_other_user() || self.names(peer.caller);
                as_one(&peer.name, if means_it { Role::Admin } else { Role::Read })
            }
            (_, false, None) if peer.is_other_user() => as_one(&peer.name, Role::Read),
            (_, false, None) => Err(Denied::NotConfigured),
        }
    }
}

/// Reason to refuse a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// No rules for callers from elsewhere in the settings.
    NotConfigured,
    Address,
    TokenMissing,
    /// Token unknown to this agent.
    TokenWrong,
    /// Certificate that no rule names.
    CertificateUnknown,
    /// Request that an agent sent, to a URL that a caller supplied.
    Agent,
    /// Request that a browser sent for a page of another site.
    Page,
}

impl Denied {
    /// Code and text of the reply.
    pub fn fault(self) -> Fault {
        let (code, text) = match self {
            Denied::NotConfigured => (
                Code::AccessNotConfigured,
                "this agent takes calls from its own node alone until it is told who may call: run `vhost-agent setup \
                 --controller ADDRESS` there, or set access.allow, access.token or tls.client_ca",
            ),
            Denied::Address => (
                Code::AddressNotAllowed,
                "access.allow does not have the address of this call, and it is not seen to be root's on the node itself: use the \
                 agent's own socket (access.socket) there",
            ),
            Denied::TokenMissing => {
                (Code::TokenMissing, "this agent wants a token: Authorization: Bearer <token>")
            }
            Denied::TokenWrong => (
                Code::TokenWrong,
                "what the header Authorization shows is no token of this agent (access.token, access.tokens_file)",
            ),
            Denied::Agent => (
                Code::CalledByAgent,
                "an agent sent that: an address that a caller gave it, of a callback for example, leads to an agent",
            ),
            Denied::Page => (
                Code::CrossSite,
                "a browser sends this for the page of another site (header Origin): no such page may call the agent",
            ),
            Denied::CertificateUnknown => (
                Code::CertificateUnknown,
                "the certificate that was shown is named by no [[access.certificate]], or is a node's own",
            ),
        };
        Fault::new(code, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str, uid: Option<u32>) -> Peer {
        let caller: Caller = address.parse().unwrap();
        match caller.is_local() || uid.is_some() {
            true => Peer::local(caller, uid),
            false => Peer::elsewhere(caller),
        }
    }

    fn named(name: &str, role: Role) -> Credential {
        Credential { name: name.into(), role }
    }

    fn role(rules: &Rules, peer: &Peer, shown: PresentedToken<'_>) -> Result<Role, Denied> {
        rules.authorize(peer, shown).map(|principal| principal.role)
    }

    #[test]
    fn without_rules_only_the_node_is_served_and_only_root_may_change_it() {
        let rules = Rules::default();
        let authorized = |address, uid| role(&rules, &peer(address, uid), PresentedToken::Nothing);
        assert_eq!(authorized("local", Some(0)), Ok(Role::Admin));
        assert_eq!(authorized("local", Some(107)), Ok(Role::Admin), "the socket's mode lets it in");
        assert_eq!(authorized("127.0.0.1", Some(0)), Ok(Role::Admin));
        assert_eq!(authorized("::1", Some(0)), Ok(Role::Admin));
        assert_eq!(authorized("127.0.0.1", Some(107)), Ok(Role::Read));
        assert_eq!(
            authorized("127.0.0.1", None),
            Ok(Role::Read),
            "the kernel did not say who it is"
        );
        for remote in ["10.0.0.1", "fe80::1"] {
            assert_eq!(authorized(remote, None), Err(Denied::NotConfigured), "{remote}");
            // The node's own address.
            assert_eq!(authorized(remote, Some(0)), Ok(Role::Admin), "{remote}");
            assert_eq!(authorized(remote, Some(107)), Ok(Role::Read), "{remote}");
        }
        let open = Rules::open();
        assert_eq!(role(&open, &peer("10.0.0.1", None), PresentedToken::Nothing), Ok(Role::Admin));
    }

    #[test]
    fn allowed_addresses_may_do_everything_and_root_needs_none() {
        let rules = Rules { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Rules::default() };
        let inside = peer("10.1.2.3", None);
        assert!(rules.let_in(&inside) && rules.let_in(&peer("127.0.0.1", Some(0))));
        assert_eq!(role(&rules, &inside, PresentedToken::Nothing), Ok(Role::Admin));
        let open = Rules { open: true, ..rules.clone() };
        for uid in [Some(107), None] {
            let own = Peer::local("10.1.2.3".parse().unwrap(), uid);
            for rules in [&rules, &open] {
                let authorized = role(rules, &own, PresentedToken::Nothing);
                assert_eq!(authorized, Ok(Role::Read), "the node's own address");
            }
        }
        let named = Rules { allow: vec!["10.1.2.3".parse().unwrap()], ..Rules::default() };
        let own = Peer::local("10.1.2.3".parse().unwrap(), Some(107));
        assert_eq!(
            role(&named, &own, PresentedToken::Nothing),
            Ok(Role::Admin),
            "a controller on the node"
        );
        for outside in [peer("127.0.0.1", Some(107)), peer("192.0.2.1", None), peer("::1", None)] {
            assert!(!rules.let_in(&outside), "{outside:?}");
        }
    }

    #[test]
    fn tokens_and_certificates_give_their_role_and_both_the_lesser_one() {
        let (deploy, read) = (named("token a", Role::Deploy), named("certificate b", Role::Read));
        let tokens = Rules { tokens: true, open: true, ..Rules::default() };
        let root = peer("127.0.0.1", Some(0));
        assert_eq!(role(&tokens, &root, PresentedToken::Nothing), Err(Denied::TokenMissing));
        assert_eq!(role(&tokens, &root, PresentedToken::Unknown), Err(Denied::TokenWrong));
        assert_eq!(role(&tokens, &root, PresentedToken::Token(&deploy)), Ok(Role::Deploy));
        let both = Rules { certificates: true, ..tokens };
        let mut remote = peer("10.0.0.1", None);
        assert_eq!(
            role(&both, &remote, PresentedToken::Token(&deploy)),
            Err(Denied::CertificateUnknown),
            "whatever the token is"
        );
        remote.certificate = Some(read);
        assert_eq!(role(&both, &remote, PresentedToken::Token(&deploy)), Ok(Role::Read));
        let alone = Rules { certificates: true, ..Rules::default() };
        let principal = alone.authorize(&remote, PresentedToken::Unknown).unwrap();
        assert_eq!((principal.name.as_ref(), principal.role), ("certificate b", Role::Read));
    }

    #[test]
    fn a_role_may_do_what_the_lesser_ones_may() {
        let who = |address: &str, role| Principal {
            name: "x".into(),
            role,
            caller: address.parse().unwrap(),
            is_root: false,
            is_local: address.starts_with("127."),
        };
        assert!(who("10.0.0.1", Role::Deploy).may(Role::Volumes).is_ok());
        let refused = who("10.0.0.1", Role::Volumes).may(Role::Deploy).unwrap_err();
        assert!(
            refused.code == Code::RoleInsufficient && refused.text.contains("has the role volumes")
        );
        let local = who("127.0.0.1", Role::Read).may(Role::Admin).unwrap_err();
        assert!(local.text.contains("access.socket"), "{}", local.text);
    }
}
