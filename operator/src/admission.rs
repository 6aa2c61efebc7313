//! I/O: what is asked before something is stored: policies, the operator configuration, pools, networks, NADs of namespaces with rules, and pods
//! that name networks. One HTTPS server, in every replica, with certificates that it makes and moves on itself.
//!
//! `server` (HTTP, TLS) -> `judge` (reads, answers) -> `policy`, `settings`, `rules`, `pods` (pure); `certificates` (pure) <- `secret` (I/O);
//! `configurations` (pure) <- `publish` (I/O, the leader's part).

mod census;
mod certificates;
mod configurations;
mod judge;
mod pods;
mod policy;
mod publish;
mod review;
mod rules;
mod secret;
mod server;
mod settings;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

pub(crate) use census::CONTROL_SWITCHES;
pub(crate) use certificates::ROTATE_AT;
pub(crate) use configurations::{INJECTOR_CONFIGURATION, OPERATOR_CONFIGURATION};
pub use publish::run;
pub use tls::InvalidTls;

use crate::context::Context;

/// Settings of the admission server.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where the admission server listens.
    #[arg(id = "webhook_address", long = "webhook-address", env = "WEBHOOK_ADDRESS", default_value = "[::]:6443")]
    pub address: SocketAddr,
    /// Service, in the operator's namespace, by which API servers reach it on port 443.
    #[arg(id = "webhook_service", long = "webhook-service", env = "WEBHOOK_SERVICE", default_value = "operator-webhook-service")]
    pub service: String,
    /// Secret, in the operator's namespace, with its certificates. Made and renewed by the operator, unless someone else made it first.
    #[arg(
        id = "webhook_secret",
        long = "webhook-secret",
        env = "ADMISSION_CONTROLLERS_CERTIFICATES_OPERATOR_SECRET_NAME",
        default_value = "operator-webhook-cert"
    )]
    pub secret: String,
    /// Whether cert-manager makes the Secret and writes the trusted certificates into the webhook configurations; the operator then writes neither.
    #[arg(
        id = "webhook_cert_manager",
        long = "webhook-cert-manager",
        env = "ADMISSION_CONTROLLERS_CERTIFICATES_CERT_MANAGER_ENABLED",
        default_value = "false",
        value_parser = |text: &str| Ok::<_, String>(text.eq_ignore_ascii_case("true"))
    )]
    pub cert_manager: bool,
    /// Seconds from making a certificate to its expiry; each is in use for the middle third.
    #[arg(id = "webhook_lifetime", long = "webhook-certificate-seconds", env = "WEBHOOK_CERTIFICATE_SECONDS", default_value_t = 90 * 24 * 3600)]
    pub lifetime_seconds: u64,
    /// What TLS it speaks.
    #[command(flatten)]
    pub tls: tls::Tls,
    /// Takes NIC models that are not in ConfigMap supported-nic-ids.
    #[arg(id = "dev_mode", long = "dev-mode", env = "DEV_MODE", default_value = "FALSE", value_parser = |text: &str| Ok::<_, String>(text == "TRUE"))]
    pub dev_mode: bool,
}

impl Settings {
    /// Fails for settings with which the server could not be as asked.
    pub fn check(&self) -> Result<(), InvalidTls> {
        self.tls.choose().map(drop)
    }
}

/// Serves until `stop` is done; needs no lease.
pub async fn serve(context: Arc<Context>, stop: impl Future<Output = ()>) {
    let settings = &context.settings.admission;
    let subject = certificates::Subject {
        secret: settings.secret.clone(),
        namespace: context.settings.namespace.clone(),
        service: settings.service.clone(),
        lifetime: Duration::from_secs(settings.lifetime_seconds.max(9)),
        made_elsewhere: settings.cert_manager,
    };
    let shown = Arc::new(secret::Shown::default());
    let client = context.client.clone();
    tokio::select! {
        () = server::run(Arc::clone(&context), settings.address, Arc::clone(&shown), stop) => {}
        () = secret::run(client, &subject, &shown) => {}
    }
}

#[cfg(test)]
impl Settings {
    /// As without flags.
    pub(crate) fn for_tests() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            service: "operator-webhook-service".to_owned(),
            secret: "operator-webhook-cert".to_owned(),
            cert_manager: false,
            lifetime_seconds: 90 * 24 * 3600,
            tls: tls::Tls::default(),
            dev_mode: false,
        }
    }
}
