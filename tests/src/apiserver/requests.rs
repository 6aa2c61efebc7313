//! I/O: how many requests an API server counted. Who sent them it does not say: a caller takes off its own.
//!
//! Lists and watches are left out, because they are none of one object; whoever looks at many objects does it by them and disturbs no count.

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{ListParams, Request};

/// Requests since the API server started. Counts are whole numbers that the server writes as floats.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests {
    /// Writes of node states, but for their statuses.
    pub writes: f64,
    /// Writes of node states' statuses.
    pub statuses: f64,
    /// Reads of single node states.
    pub reads: f64,
    /// Of nodes, pods and evictions.
    pub others: f64,
}

impl Requests {
    /// Asks for the counts, as an administrator.
    pub async fn of(client: &Client) -> Result<Self> {
        let text = client.request_text(Request::new("/metrics").list(&ListParams::default())?).await?;
        let mut requests = Self::default();
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let (labels, value) = line.rsplit_once(' ').context("a metric without value")?;
            let has = |label: &str, value: &str| labels.contains(&format!("{label}=\"{value}\""));
            let value: f64 = value.parse()?;
            if has("verb", "WATCH") || has("verb", "LIST") {
                continue;
            }
            let state = has("resource", "sriovnetworknodestates");
            let side = match () {
                () if state && has("subresource", "status") => &mut requests.statuses,
                () if state && has("verb", "GET") => &mut requests.reads,
                () if state => &mut requests.writes,
                () if has("resource", "nodes") || has("resource", "pods") => &mut requests.others,
                () => continue,
            };
            *side += value;
        }
        Ok(requests)
    }

    /// Those since an earlier count.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            writes: self.writes - before.writes,
            statuses: self.statuses - before.statuses,
            reads: self.reads - before.reads,
            others: self.others - before.others,
        }
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.writes + self.statuses + self.reads + self.others
    }
}
