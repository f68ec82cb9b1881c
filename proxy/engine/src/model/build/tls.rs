//! TLS that is not the mesh's own: how it is ended for clients from outside, and how servers are met that prove a name.

use prost::{Message as _, Name as _};
use proto::xds::core::TransportSocket;
use proto::xds::matcher::{StringMatcher, string_matcher::MatchPattern};
use proto::xds::tls::certificate_validation_context::TrustChainVerification;
use proto::xds::tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use proto::xds::tls::downstream_tls_context::SessionTicketKeysType;
use proto::xds::tls::subject_alt_name_matcher::SanType;
use proto::xds::tls::tls_parameters::TlsProtocol;
use proto::xds::tls::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext,
};
use std::sync::Arc;

use super::secret::{Secrets, inline};
use super::transport::{config, config_source, plaintext};
use super::{pem, unpack};
use crate::model::{ApplicationProtocol, ClientCertificates, Made, Named, PeerName, Roots, SecretCell, TlsTerms, TlsVersion};
use crate::raw::is_name;
use crate::rejected::{Wrong, refuse};

/// Most certificates of one listener.
const CERTIFICATES_MAX: usize = 64;
/// Most names that a server may prove one of.
const PEER_NAMES_MAX: usize = 64;
/// Most authorities of one server.
const ROOTS_GIVEN_MAX: usize = 1024;

/// How a chain ends TLS; `None`: it does not. `plain`: of clients without the extended master secret, too.
pub(super) fn terms(raw: &TransportSocket, plain: bool, secrets: &mut Secrets) -> Result<Option<Arc<TlsTerms>>, Wrong> {
    let config = config(raw)?;
    if config.type_url != DownstreamTlsContext::type_url() {
        return plaintext(raw, config).map(|_| None);
    }
    let context: DownstreamTlsContext = unpack(config)?;
    let mut content = context.encode_to_vec();
    content.push(u8::from(plain));
    let compiled = TlsTerms { plain_master_secret: plain, ..compile(&context, secrets)? };
    secrets.terms.get(&content, || Ok(compiled)).map(Some)
}

fn compile(raw: &DownstreamTlsContext, secrets: &mut Secrets) -> Result<TlsTerms, Wrong> {
    let DownstreamTlsContext { common_tls_context, require_client_certificate, session_ticket_keys_type } = raw;
    let common = common_tls_context.as_ref().ok_or_else(|| Wrong::new("common_tls_context", "is missing"))?;
    let at = |wrong: Wrong| wrong.within("common_tls_context");
    let CommonTlsContext { tls_params, tls_certificate_sds_secret_configs: listed, validation_context_type, alpn_protocols } = common;
    if listed.is_empty() || listed.len() > CERTIFICATES_MAX {
        let why = format!("are {}, not 1 to {CERTIFICATES_MAX}", listed.len());
        return Err(at(Wrong::new("tls_certificate_sds_secret_configs", why)));
    }
    let certificate = |(index, raw): (usize, &SdsSecretConfig)| {
        cell(raw, secrets).map_err(|wrong| at(wrong.within(format!("tls_certificate_sds_secret_configs[{index}]"))))
    };
    let certificates = listed.iter().enumerate().map(certificate).collect::<Result<_, _>>()?;
    let required = *require_client_certificate == Some(true);
    let clients = validation_context_type.as_ref().map(|raw| clients(raw, required, secrets)).transpose().map_err(at)?;
    if clients.is_none() && required {
        return Err(Wrong::new("require_client_certificate", "needs a validation context: whom to believe"));
    }
    let tickets = match session_ticket_keys_type {
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(raw)) => {
            Some(cell(raw, secrets).map_err(|wrong| wrong.within("session_ticket_keys_sds_secret_config"))?)
        }
        None => None,
    };
    let versions = versions(tls_params.as_ref()).map_err(|wrong| at(wrong.within("tls_params")))?;
    let alpn = alpn(alpn_protocols).map_err(at)?;
    Ok(TlsTerms { versions, alpn, certificates, clients, tickets, plain_master_secret: false, made: Made::default() })
}

fn cell(SdsSecretConfig { name, sds_config }: &SdsSecretConfig, secrets: &mut Secrets) -> Result<Arc<SecretCell>, Wrong> {
    config_source(sds_config.as_ref(), "sds_config")?;
    if name.is_empty() {
        return Err(Wrong::new("name", "is empty"));
    }
    if [proto::names::LEAF, proto::names::ROOT_CA].contains(&name.as_str()) {
        return Err(Wrong::new("name", format!("`{name}` is the mesh's own, which is not for clients from outside")));
    }
    Ok(secrets.cell(name))
}

/// Absent: what is safe and common.
fn versions(raw: Option<&TlsParameters>) -> Result<(TlsVersion, TlsVersion), Wrong> {
    let TlsParameters { tls_minimum_protocol_version: min, tls_maximum_protocol_version: max } = raw.copied().unwrap_or_default();
    let one = |raw: i32, auto: TlsVersion, field: &str| match TlsProtocol::try_from(raw) {
        Ok(TlsProtocol::TlsAuto) => Ok(auto),
        Ok(TlsProtocol::TlSv12) => Ok(TlsVersion::V12),
        Ok(TlsProtocol::TlSv13) => Ok(TlsVersion::V13),
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => Err(Wrong::new(field, "is no longer spoken (RFC 8996): TLSv1_2 or TLSv1_3")),
        Err(_) => Err(Wrong::new(field, format!("unknown value {raw}"))),
    };
    let min = one(min, TlsVersion::V12, "tls_minimum_protocol_version")?;
    let max = one(max, TlsVersion::V13, "tls_maximum_protocol_version")?;
    if min > max {
        return Err(Wrong::new("tls_maximum_protocol_version", "is older than the minimum"));
    }
    Ok((min, max))
}

fn alpn(raw: &[String]) -> Result<Vec<ApplicationProtocol>, Wrong> {
    let mut all = Vec::new();
    for name in raw {
        match ApplicationProtocol::parse(name).filter(|protocol| !all.contains(protocol)) {
            Some(protocol) => all.push(protocol),
            None => return Err(Wrong::new("alpn_protocols", format!("`{}` is not one of h2, http/1.1, once each", name.escape_debug()))),
        }
    }
    Ok(all)
}

fn clients(raw: &ValidationContextType, required: bool, secrets: &mut Secrets) -> Result<ClientCertificates, Wrong> {
    let (named, untrusted, field) = match raw {
        ValidationContextType::ValidationContextSdsSecretConfig(named) => (named, false, "validation_context_sds_secret_config"),
        ValidationContextType::ValidationContext(_) => return Err(Wrong::unsupported("validation_context")),
        ValidationContextType::CombinedValidationContext(combined) => {
            let CombinedCertificateValidationContext { default_validation_context, validation_context_sds_secret_config } = combined;
            let at = |wrong: Wrong| wrong.within("combined_validation_context");
            let untrusted = default_validation_context.as_ref().map_or(Ok(false), untrusted);
            let untrusted = untrusted.map_err(|wrong| at(wrong.within("default_validation_context")))?;
            let named = validation_context_sds_secret_config.as_ref();
            let missing = || at(Wrong::new("validation_context_sds_secret_config", "is missing"));
            (named.ok_or_else(missing)?, untrusted, "combined_validation_context.validation_context_sds_secret_config")
        }
    };
    Ok(ClientCertificates { authorities: cell(named, secrets).map_err(|wrong| wrong.within(field))?, required, untrusted })
}

/// Whether certificates are taken that nobody vouches for, which is all that it may say.
fn untrusted(raw: &CertificateValidationContext) -> Result<bool, Wrong> {
    let CertificateValidationContext {
        trusted_ca,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        trust_chain_verification,
        system_root_certs,
    } = raw;
    refuse(trusted_ca.is_some(), "trusted_ca")?;
    refuse(system_root_certs.is_some(), "system_root_certs")?;
    refuse(!match_typed_subject_alt_names.is_empty(), "match_typed_subject_alt_names")?;
    refuse(!match_subject_alt_names.is_empty(), "match_subject_alt_names")?;
    match TrustChainVerification::try_from(*trust_chain_verification) {
        Ok(TrustChainVerification::VerifyTrustChain) => Ok(false),
        Ok(TrustChainVerification::AcceptUntrusted) => Ok(true),
        Err(_) => Err(Wrong::new("trust_chain_verification", format!("unknown value {trust_chain_verification}"))),
    }
}

/// What servers must prove that have no identity (Gateway API, BackendTLSPolicy); `None`: they are met in plaintext.
pub(super) fn named(raw: &TransportSocket, secrets: &mut Secrets) -> Result<Option<Arc<Named>>, Wrong> {
    let config = config(raw)?;
    if config.type_url != UpstreamTlsContext::type_url() {
        return plaintext(raw, config).map(|_| None);
    }
    let context: UpstreamTlsContext = unpack(config)?;
    let content = context.encode_to_vec();
    let compiled = server(&context, secrets)?;
    secrets.named.get(&content, || Ok(compiled)).map(Some)
}

fn server(raw: &UpstreamTlsContext, secrets: &mut Secrets) -> Result<Named, Wrong> {
    let UpstreamTlsContext { common_tls_context, sni } = raw;
    let common = common_tls_context.as_ref().ok_or_else(|| Wrong::new("common_tls_context", "is missing"))?;
    let at = |wrong: Wrong| wrong.within("common_tls_context");
    let CommonTlsContext { tls_params, tls_certificate_sds_secret_configs, validation_context_type, alpn_protocols } = common;
    // 1.2 to 1.3, and the cluster's protocol says what is asked for.
    refuse(tls_params.is_some(), "tls_params").map_err(at)?;
    refuse(!alpn_protocols.is_empty(), "alpn_protocols").map_err(at)?;
    let shows = match tls_certificate_sds_secret_configs.as_slice() {
        [] => None,
        [own] => Some(cell(own, secrets).map_err(|wrong| at(wrong.within("tls_certificate_sds_secret_configs[0]")))?),
        [..] => return Err(at(Wrong::new("tls_certificate_sds_secret_configs", "are several: a server is shown one certificate"))),
    };
    let Some(ValidationContextType::ValidationContext(context)) = validation_context_type else {
        return Err(at(Wrong::new("validation_context", "is missing: whom to believe")));
    };
    let (roots, proves) = peers(context).map_err(|wrong| at(wrong.within("validation_context")))?;
    let named = Named::new(sni, roots).ok_or_else(|| Wrong::new("sni", format!("`{}` is not a host", sni.escape_debug())))?;
    Ok(named.proving(proves).shown(shows))
}

fn peers(raw: &CertificateValidationContext) -> Result<(Roots, Vec<PeerName>), Wrong> {
    let CertificateValidationContext {
        trusted_ca,
        match_typed_subject_alt_names: names,
        match_subject_alt_names,
        trust_chain_verification,
        system_root_certs,
    } = raw;
    refuse(*trust_chain_verification != 0, "trust_chain_verification")?;
    refuse(!match_subject_alt_names.is_empty(), "match_subject_alt_names")?;
    let roots = match (trusted_ca, system_root_certs) {
        (Some(_), Some(_)) => return Err(Wrong::new("system_root_certs", "contradicts trusted_ca")),
        (None, Some(_)) => Roots::System,
        (given, None) => {
            let pem = inline(given.as_ref(), "trusted_ca")?;
            Roots::Given(pem::certificates(pem, ROOTS_GIVEN_MAX).map_err(|wrong| wrong.within("trusted_ca"))?.into())
        }
    };
    if names.len() > PEER_NAMES_MAX {
        return Err(Wrong::new("match_typed_subject_alt_names", format!("are more than {PEER_NAMES_MAX}")));
    }
    let one = |(index, raw)| peer_name(raw).map_err(|wrong| wrong.within(format!("match_typed_subject_alt_names[{index}]")));
    Ok((roots, names.iter().enumerate().map(one).collect::<Result<_, _>>()?))
}

fn peer_name(SubjectAltNameMatcher { san_type, matcher }: &SubjectAltNameMatcher) -> Result<PeerName, Wrong> {
    let Some(StringMatcher { match_pattern: Some(MatchPattern::Exact(text)), ignore_case: false }) = matcher else {
        return Err(Wrong::new("matcher", "must be exact, and respect case"));
    };
    match SanType::try_from(*san_type) {
        Ok(SanType::Dns) if is_name(text.strip_prefix("*.").unwrap_or(text)) => Ok(PeerName::Dns(text.to_ascii_lowercase().into())),
        Ok(SanType::Dns) => Err(Wrong::new("matcher.exact", format!("`{}` is not a DNS name", text.escape_debug()))),
        Ok(SanType::Uri) if !text.is_empty() => Ok(PeerName::Uri(text.as_str().into())),
        _ => Err(Wrong::new("san_type", "must be DNS or URI")),
    }
}
