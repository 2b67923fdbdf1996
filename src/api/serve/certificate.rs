//! Client certificates: the names in them, and the roles for these names. TLS has verified the certificates before.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::model::access::{Credential, Role};
use crate::model::pattern::fits;

/// Limit of characters that are kept of a name in a certificate.
const MOST_NAME: usize = 120;

/// Rule that gives `role` to certificates whose names match its patterns. An empty pattern is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePatterns {
    /// Pattern of the subject, in the form of RFC 4514.
    pub subject: String,
    /// Pattern that at least one of the alternative names has to match.
    pub san: String,
    pub role: Role,
}

/// Rules for the certificates of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clients {
    /// Rules; without any, each trusted certificate gives [`Role::Admin`].
    pub rules: Vec<CertificatePatterns>,
    /// Public key of the agent's own certificate (SubjectPublicKeyInfo, DER), which gives no role.
    own_key: Option<Vec<u8>>,
}

impl Clients {
    /// Rules of an agent with the certificate `own`.
    pub fn new(rules: Vec<CertificatePatterns>, own: &CertificateDer<'_>) -> Clients {
        let own = Certificate::from_der(own).ok();
        Clients { rules, own_key: own.as_ref().and_then(public_key) }
    }

    /// Name and role of a certificate; `None` if it gives none. The first matching rule wins.
    pub fn credential(&self, certificate: &CertificateDer<'_>) -> Option<Credential> {
        let certificate = Certificate::from_der(certificate).ok()?;
        if self.own_key.is_some() && public_key(&certificate) == self.own_key {
            return None;
        }
        let subject = certificate.tbs_certificate().subject().to_string();
        let names = alternative_names(&certificate);
        let by_rule = |rule: &CertificatePatterns| {
            let name = names.iter().find(|name| !rule.san.is_empty() && fits(&rule.san, name));
            let fits = (rule.subject.is_empty() || fits(&rule.subject, &subject))
                && (rule.san.is_empty() || name.is_some());
            fits.then(|| (rule.role, name.or(names.first()).unwrap_or(&subject)))
        };
        let (role, name) = match self.rules.as_slice() {
            [] => (Role::Admin, names.first().unwrap_or(&subject)),
            rules => rules.iter().find_map(by_rule)?,
        };
        let name: String = name.chars().filter(|c| !c.is_control()).take(MOST_NAME).collect();
        Some(Credential { name: format!("certificate {name}").into(), role })
    }
}

fn public_key(certificate: &Certificate) -> Option<Vec<u8>> {
    certificate.tbs_certificate().subject_public_key_info().to_der().ok()
}

/// Alternative names of the certificate that are DNS names, URIs or IP addresses.
fn alternative_names(certificate: &Certificate) -> Vec<String> {
    let extension = certificate.tbs_certificate().get_extension::<SubjectAltName>();
    let Ok(Some((_, SubjectAltName(names)))) = extension else { return Vec::new() };
    let text = |name: GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
        GeneralName::IpAddress(bytes) => match bytes.as_bytes() {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => {
                <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
            }
        },
        _ => None,
    };
    names.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn made(common_name: &str, names: &[&str], key: &KeyPair) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names.push(SanType::URI("spiffe://cloud/mn".try_into().unwrap()));
        params.self_signed(key).unwrap().der().clone()
    }

    fn rule(subject: &str, san: &str, role: Role) -> CertificatePatterns {
        CertificatePatterns { subject: subject.into(), san: san.into(), role }
    }

    #[test]
    fn certificate_has_the_role_of_the_first_rule_that_names_it() {
        let (own, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let own = made("node7", &["node7.example"], &own);
        let controller = made("controller", &["mn.example", "10.0.0.5"], &key);
        for (rules, expected) in [
            (vec![], Some(Role::Admin)),
            (vec![rule("CN=controller*", "", Role::Deploy)], Some(Role::Deploy)),
            (vec![rule("", "*.example", Role::Read)], Some(Role::Read)),
            (vec![rule("", "10.0.0.5", Role::Read)], Some(Role::Read)),
            (vec![rule("", "spiffe://cloud/*", Role::Volumes)], Some(Role::Volumes)),
            (vec![rule("CN=x", "", Role::Admin), rule("", "mn.*", Role::Read)], Some(Role::Read)),
            (vec![rule("CN=controller*", "other", Role::Admin)], None),
            (vec![rule("", "", Role::Read)], Some(Role::Read)),
        ] {
            let credential_of_rules = Clients::new(rules.clone(), &own).credential(&controller);
            assert_eq!(credential_of_rules.map(|named| named.role), expected, "{rules:?}");
        }
        let clients = Clients::new(Vec::new(), &own);
        assert_eq!(
            clients.credential(&controller).unwrap().name.as_ref(),
            "certificate mn.example"
        );
        assert_eq!(clients.credential(&own), None, "a node is no controller");
        assert_eq!(clients.credential(&CertificateDer::from(vec![0])), None);
    }
}
