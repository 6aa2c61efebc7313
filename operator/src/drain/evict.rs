//! I/O: one round of evictions on one node, and the watch of its pods that asks for the next round.
//!
//! Invariant: pods leave by the eviction API only, so that a PodDisruptionBudget is never broken.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::EvictParams;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinHandle;

use super::pods::{self, Leaving, Scope};
use super::{Drain, Subject};
use crate::cache::Cache;
use crate::context::Context;
use crate::queue::Queue;
use crate::resources::{RequestFailed, answered};

/// Evictions of one node that are asked for at the same time.
const AT_A_TIME: usize = 8;
/// Pods that are named in a message.
const NAMED: usize = 5;

/// The pods of one node, watched as long as this value lives.
pub(super) struct PodWatch(JoinHandle<()>);

impl PodWatch {
    pub(super) fn start(client: Client, node: &str, pods: Arc<Cache<Pod>>, queue: Queue<Subject>) -> Self {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let subject = Subject::Node(node.to_owned());
        Self(tokio::spawn(async move {
            pods.watch(Api::all(client), config, |_| queue.add(subject.clone())).await;
        }))
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The pods that have not left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// On their way.
    pub going: Vec<String>,
    /// Held by a budget: pod and budget.
    pub held: Vec<(String, String)>,
}

enum Answer {
    Going,
    Held(String),
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.going.is_empty() && self.held.is_empty()
    }

    /// True when a budget holds a pod, so that asking again can help.
    pub(super) fn blocked(&self) -> bool {
        !self.held.is_empty()
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budgets: BTreeSet<&str> = self.held.iter().map(|(_, budget)| budget.as_str()).collect();
        let list = |f: &mut fmt::Formatter<'_>, names: &[&str]| {
            f.write_str(&names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", "))?;
            if names.len() > NAMED { write!(f, " and {} more", names.len() - NAMED) } else { Ok(()) }
        };
        if !budgets.is_empty() {
            f.write_str("waiting for PDB ")?;
            list(f, &budgets.into_iter().collect::<Vec<_>>())?;
            f.write_str(", which allows no eviction of ")?;
            list(f, &self.held.iter().map(|(pod, _)| pod.as_str()).collect::<Vec<_>>())?;
        }
        if !self.going.is_empty() {
            f.write_str(if self.held.is_empty() { "waiting for pods to end: " } else { "; and for pods to end: " })?;
            list(f, &self.going.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Evicts what is in the way; answers what has not left yet. Nothing left means that the node is drained.
pub(super) async fn round(context: &Context, drain: &Drain, scope: &Scope) -> Result<Left, RequestFailed> {
    let all = drain.pods.list();
    look_at_claims(context, drain, scope, &all).await?;
    let claimed = |namespace: &str, name: &str| drain.claims.borrow().get(&(namespace.to_owned(), name.to_owned())).copied().unwrap_or(false);
    let leaving = pods::leaving(all.iter().map(AsRef::as_ref), scope, &claimed);
    let (of_daemon_sets, mut others): (Vec<_>, Vec<_>) = leaving.into_iter().partition(|pod| pod.of_daemon_set);
    if others.is_empty() {
        // Last, and each once: their controller makes them anew on the same node.
        let mut known = drain.of_daemon_sets.borrow_mut();
        let known = known.get_or_insert_with(|| of_daemon_sets.iter().map(|pod| pod.uid.clone()).collect());
        others.extend(of_daemon_sets.into_iter().filter(|pod| known.contains(&pod.uid)));
    }
    let answers = stream::iter(others).map(|pod| evict(context, pod)).buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await;
    let mut left = Left::default();
    let mut failure = None;
    for (pod, answer) in answers {
        match answer {
            Ok(Some(Answer::Going)) => left.going.push(pod),
            Ok(Some(Answer::Held(budget))) => left.held.push((pod, budget)),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    left.going.sort();
    left.held.sort();
    failure.map_or(Ok(left), Err)
}

/// `None`: it is gone.
async fn evict(context: &Context, pod: Leaving) -> (String, Result<Option<Answer>, RequestFailed>) {
    let called = format!("{}/{}", pod.namespace, pod.name);
    if pod.going {
        return (called, Ok(Some(Answer::Going)));
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    let answer = match answered(api.evict(&pod.name, &EvictParams::default())).await {
        Ok(_) => {
            tracing::info!(pod = called, "pod evicted");
            Ok(Some(Answer::Going))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(kube::Error::Api(status)) if pods::budget(&status).is_some() => {
            let budget = pods::budget(&status).unwrap_or_default();
            Ok(Some(Answer::Held(format!("{}/{budget}", pod.namespace))))
        }
        // The API server's word for a pod that two budgets select; only a user can change that.
        Err(kube::Error::Api(status)) if status.code == 500 && status.message.contains("PodDisruptionBudget") => {
            Ok(Some(Answer::Held(format!("{}/* ({})", pod.namespace, status.message))))
        }
        Err(error) => Err(RequestFailed::new("evict", "Pod", &called, error)),
    };
    (called, answer)
}

/// Which claims hold VFs is asked once a drain, and only of pods that have claims.
async fn look_at_claims(context: &Context, drain: &Drain, scope: &Scope, pods: &[Arc<Pod>]) -> Result<(), RequestFailed> {
    if *scope == Scope::Everything {
        return Ok(());
    }
    for pod in pods {
        for claim in pods::claims(pod) {
            let key = (pod.namespace().unwrap_or_default(), claim);
            if drain.claims.borrow().contains_key(&key) {
                continue;
            }
            let api: Api<ResourceClaim> = Api::namespaced(context.client.clone(), &key.0);
            let found =
                answered(api.get_opt(&key.1)).await.map_err(|e| RequestFailed::new("read", "ResourceClaim", &format!("{}/{}", key.0, key.1), e))?;
            drain.claims.borrow_mut().insert(key, found.as_ref().is_some_and(pods::has_vf));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_what_is_said_in_one_line() {
        let names = |range: std::ops::Range<usize>| range.map(|n| format!("web/p{n}")).collect::<Vec<_>>();
        let held = Left { held: vec![("web/a".into(), "web/frontend".into())], going: names(0..7) };
        assert_eq!(
            held.to_string(),
            "waiting for PDB web/frontend, which allows no eviction of web/a; and for pods to end: web/p0, web/p1, web/p2, web/p3, web/p4 and 2 more"
        );
        assert_eq!(Left { going: names(0..1), held: vec![] }.to_string(), "waiting for pods to end: web/p0");
    }
}
