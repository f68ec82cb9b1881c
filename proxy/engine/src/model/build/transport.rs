//! Transport sockets. Certificates, trust and identities are the proxy's own affair (`tls` in `proxy`), so a resource can only say what
//! is so anyway: TLS 1.3, mutual, the leaf and the bundle by their names, SPIFFE identities, mesh ALPN.

use prost::Name;
use prost_types::Any;
use proto::names::{ALPN_MESH, LEAF, ROOT_CA};
use proto::xds::core::transport_socket::ConfigType;
use proto::xds::core::{ConfigSource, TransportSocket};
use proto::xds::matcher::{StringMatcher, string_matcher::MatchPattern};
use proto::xds::raw_buffer::RawBuffer;
use proto::xds::tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use proto::xds::tls::subject_alt_name_matcher::SanType;
use proto::xds::tls::tls_parameters::TlsProtocol;
use proto::xds::tls::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext,
};

use super::unpack;
use crate::rejected::{Wrong, refuse};

/// What a transport socket stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// Mesh TLS.
    Mesh,
    /// Plaintext.
    Plain,
}

/// What a filter chain's socket says of who connects.
pub(super) fn downstream(raw: &TransportSocket) -> Result<Security, Wrong> {
    let config = config(raw)?;
    if config.type_url != DownstreamTlsContext::type_url() {
        return plaintext(raw, config);
    }
    let DownstreamTlsContext { common_tls_context, require_client_certificate, session_ticket_keys_type } = unpack(config)?;
    refuse(session_ticket_keys_type.is_some(), "session_ticket_keys_sds_secret_config")?;
    if require_client_certificate != Some(true) {
        return Err(Wrong::new("require_client_certificate", "must be true: mesh TLS is mutual"));
    }
    context(common_tls_context.as_ref()).map(|()| Security::Mesh)
}

/// What a cluster's socket says of whom we connect to.
pub(super) fn upstream(raw: &TransportSocket) -> Result<Security, Wrong> {
    let config = config(raw)?;
    if config.type_url != UpstreamTlsContext::type_url() {
        return plaintext(raw, config);
    }
    let UpstreamTlsContext { common_tls_context, sni } = unpack(config)?;
    refuse(!sni.is_empty(), "sni")?;
    context(common_tls_context.as_ref()).map(|()| Security::Mesh)
}

/// The socket's name is a label; its type decides.
pub(super) fn config(TransportSocket { name: _, config_type }: &TransportSocket) -> Result<&Any, Wrong> {
    match config_type {
        Some(ConfigType::TypedConfig(config)) => Ok(config),
        None => Err(Wrong::new("typed_config", "is missing")),
    }
}

pub(super) fn plaintext(raw: &TransportSocket, config: &Any) -> Result<Security, Wrong> {
    if config.type_url != RawBuffer::type_url() {
        let why = format!("transport socket `{}` is not supported by this proxy: raw_buffer, or mesh TLS", raw.name.escape_debug());
        return Err(Wrong::new("typed_config", why));
    }
    let RawBuffer {} = unpack(config)?;
    Ok(Security::Plain)
}

fn context(raw: Option<&CommonTlsContext>) -> Result<(), Wrong> {
    raw.map_or(Ok(()), |raw| common(raw).map_err(|wrong| wrong.within("common_tls_context")))
}

fn common(raw: &CommonTlsContext) -> Result<(), Wrong> {
    let CommonTlsContext { tls_params, tls_certificate_sds_secret_configs, validation_context_type, alpn_protocols } = raw;
    if let Some(TlsParameters { tls_minimum_protocol_version, tls_maximum_protocol_version }) = tls_params {
        version(*tls_minimum_protocol_version, "tls_params.tls_minimum_protocol_version")?;
        version(*tls_maximum_protocol_version, "tls_params.tls_maximum_protocol_version")?;
    }
    for (index, own) in tls_certificate_sds_secret_configs.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("tls_certificate_sds_secret_configs[{index}]"));
        secret(own, LEAF).map_err(at)?;
        if index > 0 {
            return Err(at(Wrong::new("", "a proxy has one certificate")));
        }
    }
    if !alpn_protocols.is_empty() && *alpn_protocols != ALPN_MESH {
        return Err(Wrong::new("alpn_protocols", format!("must be {}", ALPN_MESH.join(", "))));
    }
    match validation_context_type {
        None => Ok(()),
        Some(ValidationContextType::ValidationContext(context)) => peers(context).map_err(|wrong| wrong.within("validation_context")),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(bundle)) => {
            secret(bundle, ROOT_CA).map_err(|wrong| wrong.within("validation_context_sds_secret_config"))
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined_context(combined).map_err(|wrong| wrong.within("combined_validation_context"))
        }
    }
}

/// TLS 1.3 is all that mesh peers speak; "auto" leaves it to us.
fn version(raw: i32, field: &str) -> Result<(), Wrong> {
    match TlsProtocol::try_from(raw) {
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => Ok(()),
        _ => Err(Wrong::new(field, "must be TLSv1_3")),
    }
}

fn combined_context(raw: &CombinedCertificateValidationContext) -> Result<(), Wrong> {
    let CombinedCertificateValidationContext { default_validation_context, validation_context_sds_secret_config } = raw;
    if let Some(context) = default_validation_context {
        peers(context).map_err(|wrong| wrong.within("default_validation_context"))?;
    }
    match validation_context_sds_secret_config {
        Some(bundle) => secret(bundle, ROOT_CA).map_err(|wrong| wrong.within("validation_context_sds_secret_config")),
        None => Ok(()),
    }
}

fn secret(raw: &SdsSecretConfig, wanted: &str) -> Result<(), Wrong> {
    let SdsSecretConfig { name, sds_config } = raw;
    if name != wanted {
        return Err(Wrong::new("name", format!("`{}` is not the secret of mesh TLS: `{wanted}`", name.escape_debug())));
    }
    config_source(sds_config.as_ref(), "sds_config")
}

/// Whom to believe: any identity of the trust domain. Which one it must be follows from the endpoint.
fn peers(raw: &CertificateValidationContext) -> Result<(), Wrong> {
    let CertificateValidationContext {
        trusted_ca,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        trust_chain_verification,
        system_root_certs,
    } = raw;
    refuse(*trust_chain_verification != 0, "trust_chain_verification")?;
    refuse(system_root_certs.is_some(), "system_root_certs")?;
    refuse(trusted_ca.is_some(), "trusted_ca")?;
    refuse(!match_subject_alt_names.is_empty(), "match_subject_alt_names")?;
    match match_typed_subject_alt_names.as_slice() {
        [] => Ok(()),
        [
            SubjectAltNameMatcher {
                san_type,
                matcher: Some(StringMatcher { match_pattern: Some(MatchPattern::Prefix(prefix)), ignore_case: false }),
            },
        ] if SanType::try_from(*san_type) == Ok(SanType::Uri) && of_trust_domain(prefix) => Ok(()),
        _ => Err(Wrong::new("match_typed_subject_alt_names", "must be the one URI prefix spiffe://TRUST-DOMAIN/")),
    }
}

fn of_trust_domain(prefix: &str) -> bool {
    let domain = prefix.strip_prefix("spiffe://").and_then(|rest| rest.strip_suffix('/'));
    // Judged by the one parser of identities.
    domain.is_some_and(|domain| proto::identity::Identity::new(domain, "a", "a").is_ok())
}

/// Everything comes on the one ADS stream; what is not there is waited for by the control plane, not by us.
pub(super) fn config_source(raw: Option<&ConfigSource>, field: &str) -> Result<(), Wrong> {
    use proto::xds::core::config_source::ConfigSourceSpecifier as Source;
    use proto::xds::core::{AggregatedConfigSource, ApiVersion, SelfConfigSource};
    let Some(ConfigSource { config_source_specifier, initial_fetch_timeout, resource_api_version }) = raw else { return Ok(()) };
    match config_source_specifier {
        None | Some(Source::Ads(AggregatedConfigSource {}) | Source::Self_(SelfConfigSource {})) => {}
    }
    refuse(initial_fetch_timeout.is_some(), &format!("{field}.initial_fetch_timeout"))?;
    match ApiVersion::try_from(*resource_api_version) {
        Ok(ApiVersion::Auto | ApiVersion::V3) => Ok(()),
        _ => Err(Wrong::new(format!("{field}.resource_api_version"), "must be V3")),
    }
}
