//! I/O: one leader among several operators, by a `Lease` of the operator's namespace, as client-go does it.
//!
//! Guarantees: every write carries the resourceVersion that was read, so two can never both succeed; a foreign lease is taken over only after
//! it was not renewed for its whole duration by this machine's own monotonic clock, so wrong wall clocks do not make two leaders; a leader
//! that could not renew before its deadline says so, and the process must end. What does not live here: what a leader does.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout};

/// Name of the lease for which operators compete, in their namespace.
pub const NAME: &str = "sriov-network-operator";

/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// When a leader that could not renew gives up; below [`DURATION`], so that it stops before another starts.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two tries.
const PERIOD: Duration = Duration::from_secs(2);

/// The leader could not renew its lease in time, or another holds it.
#[derive(Debug, thiserror::Error)]
#[error("lost the lease {name}: {why}")]
pub struct LostLease {
    name: String,
    why: String,
}

/// This process's view of the lease.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    observed: Option<Observed>,
}

/// The last foreign state of the lease and when it was first seen.
#[derive(Clone, Debug, PartialEq)]
struct Observed {
    holder: String,
    renew_time: Option<MicroTime>,
    since: Instant,
}

/// What one look at the lease leads to.
#[derive(Debug, PartialEq)]
enum Decision {
    Take,
    Renew,
    Wait(Observed),
}

impl Leadership {
    /// Of the process that calls itself `identity`, which must differ between processes.
    pub fn new(api: Api<Lease>, name: &str, identity: &str) -> Self {
        Self { api, name: name.to_owned(), identity: identity.to_owned(), observed: None }
    }

    /// Waits until this process holds the lease.
    pub async fn acquire(&mut self) {
        loop {
            match timeout(RENEW_DEADLINE, self.attempt()).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "failed to acquire the lease"),
                // A connection that died without a word would otherwise keep this process waiting for minutes.
                Err(_) => tracing::warn!(lease = self.name, "failed to acquire the lease: the API server does not answer"),
            }
            sleep(PERIOD).await;
        }
    }

    /// Renews until that fails for too long.
    pub async fn hold(&mut self) -> LostLease {
        let mut renewed = Instant::now();
        loop {
            sleep(PERIOD).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            let why = match timeout(left, self.attempt()).await {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    continue;
                }
                Ok(Ok(false)) => return self.lost("another process holds it"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!(lease = self.name, why, "failed to renew the lease");
            if renewed.elapsed() >= RENEW_DEADLINE {
                return self.lost(&why);
            }
        }
    }

    /// Gives the lease back, so that the next leader does not have to wait for it to run out.
    pub async fn release(&self) {
        let released = async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Ok(Err(error)) = timeout(PERIOD, released).await {
            tracing::warn!(%error, lease = self.name, "failed to release the lease");
        }
    }

    fn lost(&self, why: &str) -> LostLease {
        LostLease { name: self.name.clone(), why: why.to_owned() }
    }

    /// One try; true when this process holds the lease after it.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(&LeaseSpec::default(), &Decision::Take)) };
            return written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let decision = decide(&spec, &self.identity, self.observed.as_ref(), Instant::now());
        if let Decision::Wait(observed) = decision {
            self.observed = Some(observed);
            return Ok(false);
        }
        lease.spec = Some(self.spec(&spec, &decision));
        written(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, old: &LeaseSpec, decision: &Decision) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let taken = *decision == Decision::Take;
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if taken { Some(now.clone()) } else { old.acquire_time.clone() },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or(-1) + i32::from(taken)),
            ..old.clone()
        }
    }
}

/// A conflict means that another process was faster, which is not an error.
fn written(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn decide(spec: &LeaseSpec, identity: &str, observed: Option<&Observed>, now: Instant) -> Decision {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Decision::Renew;
    }
    if holder.is_empty() {
        return Decision::Take;
    }
    let known = observed.filter(|o| o.holder == holder && o.renew_time == spec.renew_time);
    let since = known.map_or(now, |o| o.since);
    let duration = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(DURATION, Duration::from_secs);
    if now.duration_since(since) > duration {
        return Decision::Take;
    }
    Decision::Wait(Observed { holder: holder.to_owned(), renew_time: spec.renew_time.clone(), since })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    fn wait(decision: Decision) -> Observed {
        let Decision::Wait(observed) = decision else { panic!("{decision:?}") };
        observed
    }

    #[test]
    fn a_free_lease_is_taken_and_an_own_one_renewed() {
        let now = Instant::now();
        assert_eq!(decide(&LeaseSpec::default(), "me", None, now), Decision::Take);
        assert_eq!(decide(&held("me", 1), "me", None, now), Decision::Renew);
    }

    #[test]
    fn a_foreign_lease_is_taken_only_after_its_duration_without_renewal_by_our_clock() {
        let start = Instant::now();
        // Renewed long ago by its own clock: that alone is no reason.
        let seen = wait(decide(&held("other", 1), "me", None, start));
        let seen = wait(decide(&held("other", 1), "me", Some(&seen), start + Duration::from_secs(14)));
        assert_eq!(decide(&held("other", 1), "me", Some(&seen), start + Duration::from_secs(16)), Decision::Take);
        let renewed = wait(decide(&held("other", 2), "me", Some(&seen), start + Duration::from_secs(16)));
        assert_eq!(renewed.since, start + Duration::from_secs(16));
    }
}
