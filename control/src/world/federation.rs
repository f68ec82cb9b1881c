//! Roots of other trust domains: what the Mesh's `federation` names, read and judged. A bundle that cannot be used never replaces one
//! that could: the last good one stays believed as long as the Mesh names its trust domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::own::Federated;
use super::{Kind, Spec, World};

/// Roots of one bundle at most.
const ROOTS_MAX: usize = 64;
/// Bytes of one root at most.
const ROOT_BYTES_MAX: usize = 64 << 10;

/// Context tag of a URI among general names; x509-parser gives one that is not UTF-8 as invalid, without an error.
const URI_TAG: x509_parser::der_parser::asn1_rs::Tag = x509_parser::der_parser::asn1_rs::Tag(6);

/// How a trust domain's bundle stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bundle {
    /// The roots in force, DER; empty: nobody of that trust domain is believed.
    pub roots: Arc<Vec<CertificateDer<'static>>>,
    /// Why what stands there now is not in force.
    pub wrong: Option<WrongBundle>,
}

/// Why a bundle cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongBundle {
    /// As a condition says it: `RefNotFound` or `InvalidBundle`.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
}

/// Bundles by trust domain.
pub type Bundles = BTreeMap<String, Bundle>;

impl World {
    /// The bundle of every trust domain that the Mesh federates with.
    pub fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// Reads all bundles anew, after a change of objects.
    pub(super) fn federate(&self) -> Bundles {
        let mut live = self.of_kind(Kind::Mesh).filter_map(|(_, slot)| slot.live()?.object.as_ref());
        let federation = live.find_map(|object| if let Spec::Mesh(mesh) = &object.spec { Some(&mesh.federation) } else { None });
        let bundle = |federated: &Federated| {
            let before = self.bundles.get(&federated.trust_domain).map(|bundle| Arc::clone(&bundle.roots)).unwrap_or_default();
            match self.bundle(federated) {
                Ok(roots) if *before == roots => Bundle { roots: before, wrong: None },
                Ok(roots) => Bundle { roots: Arc::new(roots), wrong: None },
                Err(wrong) => Bundle { roots: before, wrong: Some(wrong) },
            }
        };
        federation.into_iter().flatten().map(|federated| (federated.trust_domain.clone(), bundle(federated))).collect()
    }

    fn bundle(&self, federated: &Federated) -> Result<Vec<CertificateDer<'static>>, WrongBundle> {
        let content = self.content(&federated.bundle);
        let content = content.map_err(|error| WrongBundle { reason: "RefNotFound", message: error.to_string() })?;
        read(&content, &federated.trust_domain)
            .map_err(|why| WrongBundle { reason: "InvalidBundle", message: format!("{}: {why}", federated.bundle) })
    }
}

/// The roots in a text of PEM, each a certificate authority that may speak for that trust domain.
fn read(pem: &[u8], trust_domain: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots: Vec<CertificateDer<'static>> = Vec::new();
    for (index, root) in CertificateDer::pem_slice_iter(pem).enumerate() {
        if index >= ROOTS_MAX {
            return Err(format!("it holds more than {ROOTS_MAX} certificates"));
        }
        let root = root.map_err(|error| format!("certificate {} is no PEM: {error}", index + 1))?;
        judge(&root, trust_domain).map_err(|why| format!("certificate {}: {why}", index + 1))?;
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

fn judge(root: &CertificateDer<'_>, trust_domain: &str) -> Result<(), String> {
    if root.len() > ROOT_BYTES_MAX {
        return Err(format!("it has {} bytes, at most {ROOT_BYTES_MAX} are taken", root.len()));
    }
    let (_, certificate) = X509Certificate::from_der(root).map_err(|error| format!("it cannot be read: {error}"))?;
    if !certificate.is_ca() {
        return Err("it is no certificate authority (CA:FALSE); a bundle holds roots, not leaves".to_owned());
    }
    let malformed = |error| format!("it cannot be read: {error}");
    if let Some(constraints) = certificate.name_constraints().map_err(malformed)? {
        let subtrees = [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees];
        let of_uris = |name: &GeneralName<'_>| matches!(name, GeneralName::URI(_) | GeneralName::Invalid(URI_TAG, _));
        if subtrees.into_iter().flatten().flatten().any(|subtree| of_uris(&subtree.base)) {
            // facts.md, SPIFFE.
            return Err("it has name constraints for URIs, below which our TLS library refuses every SPIFFE certificate".to_owned());
        }
    }
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    for name in names.map(|names| names.value.general_names.as_slice()).unwrap_or_default() {
        let GeneralName::URI(uri) = name else { continue };
        // An authority's own name is that of its trust domain, with or without a path (SPIFFE X.509-SVID, section 3).
        let domain = uri.strip_prefix("spiffe://").map(|rest| rest.split('/').next().unwrap_or_default());
        if domain.is_some_and(|domain| domain != trust_domain) {
            return Err(format!("it is the authority of `{uri}`, not of the trust domain `{trust_domain}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, GeneralSubtree, IsCa, KeyPair, NameConstraints, SanType};
    use rustls_pki_types::pem::PemObject as _;

    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, World, WorldSettings};

    fn root(shape: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        shape(&mut params);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn named(uri: &str) -> String {
        let uri = SanType::URI(uri.try_into().unwrap());
        root(|params| params.subject_alt_names.push(uri))
    }

    const MESH: &str = "\
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec: {federation: [{trustDomain: partner.example, bundle: {configMapRef: {name: roots, key: ca.pem}}}]}
";

    /// A folder of a Mesh and a ConfigMap, which change one after the other.
    struct Case {
        folder: Folder,
        world: World,
    }

    impl Case {
        fn new() -> Self {
            let mut case = Self { folder: Folder::default(), world: World::new(WorldSettings::default(), Allocations::default()) };
            case.put("mesh", Some(MESH));
            case
        }

        fn put(&mut self, file: &str, text: Option<&str>) {
            let change = FileChange { file: file.to_owned(), text: text.map(|text| Ok(text.to_owned())) };
            self.world.apply(self.folder.update(vec![change], 0));
        }

        /// Roots in force, and what is wrong, after the ConfigMap holds this.
        fn after(&mut self, pem: Option<&str>) -> (usize, String) {
            let text = pem.map(|pem| {
                let data = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "roots", "namespace": "meshwright-system"}, "data": {"ca.pem": pem}});
                data.to_string()
            });
            self.put("roots", text.as_deref());
            let bundle = self.world.bundles()["partner.example"].clone();
            (bundle.roots.len(), bundle.wrong.map(|wrong| format!("{} {}", wrong.reason, wrong.message)).unwrap_or_default())
        }
    }

    #[test]
    fn the_last_good_bundle_stays() {
        // Aim: a bundle that is missing or broken says why and takes nothing away; a good one replaces it; without federation all is forgotten.
        let mut case = Case::new();
        let (none, why) = case.after(None);
        assert_eq!((none, why.as_str()), (0, "RefNotFound there is no ConfigMap meshwright-system/roots"));
        let two = [root(|_| {}), named("spiffe://partner.example")].concat();
        assert_eq!(case.after(Some(&two)), (2, String::new()));
        let (kept, why) = case.after(Some("-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n"));
        assert!(kept == 2 && why.starts_with("InvalidBundle entry `ca.pem` of ConfigMap"), "{why}");
        let (kept, why) = case.after(None);
        assert!(kept == 2 && why.starts_with("RefNotFound"), "{why}");
        let one = root(|_| {});
        assert_eq!(case.after(Some(&one.repeat(2))), (1, String::new()), "the same root twice is one");
        case.put("mesh", Some(&MESH.replace("partner.example", "other.example")));
        assert_eq!(case.world.bundles().keys().collect::<Vec<_>>(), ["other.example"]);
    }

    #[test]
    fn only_roots_that_may_speak_for_the_domain_are_taken() {
        // Aim: leaves, other domains' authorities (ours among them), nothing, too many, and authorities below which no certificate of ours
        // could be verified (facts.md, SPIFFE) are each refused in plain words.
        let constrained = root(|params| {
            let only = vec![GeneralSubtree::Rfc822Name("partner.example".to_owned())];
            params.name_constraints = Some(NameConstraints { permitted_subtrees: only, excluded_subtrees: Vec::new() });
        });
        assert_eq!(Case::new().after(Some(&constrained)), (1, String::new()), "other constraints do no harm");
        let nested = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
        let by_uri = |uri: &[u8]| {
            let subtrees = nested(0x30, &nested(0xa0, &nested(0x30, &nested(0x86, uri))));
            let constraint = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], subtrees);
            root(|params| params.custom_extensions.push(constraint))
        };
        for (pem, why) in [
            (by_uri(b"partner.example"), "it has name constraints for URIs"),
            (by_uri(b"partner\xff"), "it has name constraints for URIs"),
            (root(|params| params.is_ca = IsCa::ExplicitNoCa), "certificate 1: it is no certificate authority"),
            (named("spiffe://cluster.local"), "it is the authority of `spiffe://cluster.local`, not of the trust domain `partner.example`"),
            (named("spiffe://partner.example.evil"), "not of the trust domain"),
            ("hello".to_owned(), "it holds no certificate"),
            (root(|_| {}).repeat(65), "more than 64"),
        ] {
            let (none, said) = Case::new().after(Some(&pem));
            assert!(none == 0 && said.contains(why), "wanted `{why}` in `{said}`");
        }
    }

    proptest::proptest! {
        /// Aim: no bundle makes its reader panic: bytes at random, and a good one with a byte spoilt, in its PEM and in its DER.
        #[test]
        fn any_bundle_is_survived(
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            at in proptest::prelude::any::<u16>(),
            bits in 1..=255_u8,
        ) {
            static GOOD: std::sync::LazyLock<(Vec<u8>, Vec<u8>)> = std::sync::LazyLock::new(|| {
                let pem = named("spiffe://partner.example").into_bytes();
                let der = super::CertificateDer::from_pem_slice(&pem).unwrap().to_vec();
                (pem, der)
            });
            let spoil = |good: &[u8]| {
                let mut spoilt = good.to_vec();
                let at = usize::from(at) % spoilt.len();
                spoilt[at] ^= bits;
                spoilt
            };
            let _ = (super::read(&noise, "partner.example"), super::read(&spoil(&GOOD.0), "partner.example"));
            let _ = super::judge(&super::CertificateDer::from(spoil(&GOOD.1)), "partner.example");
        }
    }
}
