//! I/O: a proxy between one program and the API server that answers some of its requests as a troubled API server or a bad network would. The rest goes
//! through unchanged, watches included.
//!
//! What lives here: forwarding, and which request meets which fault. What does not: the tests (`apiserver_faults`). Requests are counted, not diced, so
//! that a run can be repeated. Leases and Events are left alone: losing the lease ends the process by design, and a lost Event is not tried again.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use futures::{StreamExt, stream};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{ApiServer, User};

/// What a request can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 409 before it reached the API server.
    Conflict,
    /// 429 before it reached the API server.
    TooManyRequests,
    /// 500 before it reached the API server.
    ServerError,
    /// It was carried out, and the connection broke before the answer.
    LostAnswer,
    /// It did not reach the API server, and no answer ever comes.
    Silence,
    /// A list that ends in the middle.
    TruncatedList,
    /// A watch that says 410 (its resource version is too old).
    ExpiredWatch,
    /// A list that is refused while the resource is away; its watches end and say 410, so that it has to be listed.
    Away,
}

/// What writes meet, one after the other; in between as many go through.
const OF_WRITES: [Fault; 4] = [Fault::Conflict, Fault::TooManyRequests, Fault::ServerError, Fault::LostAnswer];
/// Largest answer to a list that is cut.
const LARGEST: usize = 64 << 20;

struct Shared {
    client: Client,
    on: AtomicBool,
    /// The next write to this resource meets silence.
    silence: Mutex<Option<&'static str>>,
    /// Lists and watches of this resource are refused.
    away: watch::Sender<Option<&'static str>>,
    /// Requests so far: writes together, lists and watches by their paths, so that none fails twice in a row.
    counts: Mutex<BTreeMap<String, usize>>,
    met: Mutex<BTreeMap<Fault, usize>>,
}

/// A running proxy; ends with this value.
pub struct FaultyProxy {
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl FaultyProxy {
    /// For programs that are this user. Faults begin with [`Self::trouble`].
    pub async fn start(server: &ApiServer, user: User) -> Result<Self> {
        let file = server.kubeconfig(user);
        let mut config = Config::from_custom_kubeconfig(Kubeconfig::read_from(&file)?, &KubeConfigOptions::default()).await?;
        // Who asks is said by the requests that are passed on.
        config.auth_info = AuthInfo::default();
        config.default_retry = false;
        let shared = Arc::new(Shared {
            client: Client::try_from(config)?,
            on: AtomicBool::new(false),
            silence: Mutex::default(),
            away: watch::Sender::default(),
            counts: Mutex::default(),
            met: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        let mut text: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        text["clusters"][0]["cluster"] = json!({ "server": format!("http://{address}") });
        let kubeconfig = file.with_extension("proxied");
        fs::write(&kubeconfig, text.to_string()).with_context(|| format!("write {}", kubeconfig.display()))?;
        Ok(Self { kubeconfig, shared, serving })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig.display().to_string()
    }

    /// Switches faults on or off; [`Fault::Silence`] is asked for by itself.
    pub fn trouble(&self, on: bool) {
        self.shared.on.store(on, Ordering::Relaxed);
    }

    /// The next write to a resource (its plural) is never answered.
    pub fn silence(&self, resource: &'static str) {
        *self.shared.silence.lock().unwrap_or_else(PoisonError::into_inner) = Some(resource);
    }

    /// Ends the watches of a resource (its plural) and refuses lists of it, until [`Self::back`]: what happens meanwhile is never told.
    pub fn away(&self, resource: &'static str) {
        self.shared.away.send_replace(Some(resource));
    }

    /// Ends what [`Self::away`] began.
    pub fn back(&self) {
        self.shared.away.send_replace(None);
    }

    /// How often each fault was met.
    pub fn met(&self) -> BTreeMap<Fault, usize> {
        self.shared.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn fault(&self, request: &Request<Body>) -> Option<Fault> {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if path.contains("/leases") || path.contains("/events") {
            return None;
        }
        let reads = request.method() == "GET";
        if !reads {
            let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
            if silence.is_some_and(|resource| path.contains(&format!("/{resource}/"))) {
                *silence = None;
                return Some(Fault::Silence);
            }
        }
        if reads && self.away.borrow().is_some_and(|resource| path.ends_with(&format!("/{resource}"))) {
            return Some(if query.contains("watch=true") { Fault::ExpiredWatch } else { Fault::Away });
        }
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        if query.contains("watch=true") {
            return self.count(&format!("watch {path}")).is_multiple_of(2).then_some(Fault::ExpiredWatch);
        }
        if reads {
            return (query.contains("limit=") && self.count(&format!("list {path}")).is_multiple_of(2)).then_some(Fault::TruncatedList);
        }
        let number = self.count("write");
        number.is_multiple_of(2).then(|| OF_WRITES[number / 2 % OF_WRITES.len()])
    }

    /// How often this was counted before.
    fn count(&self, what: &str) -> usize {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let number = counts.entry(what.to_owned()).or_default();
        *number += 1;
        *number - 1
    }

    async fn forward(&self, request: Request<Body>) -> Result<Response<kube::client::Body>> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, LARGEST).await?;
        let mut forwarded = Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
        let headers: &mut HeaderMap = forwarded.headers_mut();
        for hop in ["host", "connection", "content-length"] {
            headers.remove(hop);
        }
        Ok(self.client.send(forwarded).await?)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let Some(fault) = shared.fault(&request) else {
        let (path, away) = (request.uri().path().to_owned(), shared.away.subscribe());
        return until_away(passed_on(shared.forward(request).await), path, away);
    };
    *shared.met.lock().unwrap_or_else(PoisonError::into_inner).entry(fault).or_default() += 1;
    match fault {
        Fault::Conflict => status(StatusCode::CONFLICT, "Conflict"),
        Fault::TooManyRequests => status(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
        Fault::ServerError | Fault::Away => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Fault::LostAnswer => {
            shared.forward(request).await.ok();
            Body::from_stream(stream::once(async { Err::<Bytes, _>(std::io::Error::other("the connection broke")) })).into_response()
        }
        Fault::Silence => {
            tokio::time::sleep(Duration::from_hours(1)).await;
            status(StatusCode::GATEWAY_TIMEOUT, "Timeout")
        }
        Fault::TruncatedList => truncated(shared.forward(request).await).await,
        Fault::ExpiredWatch => {
            let gone = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410 });
            format!("{}\n", json!({ "type": "ERROR", "object": gone })).into_response()
        }
    }
}

fn passed_on(response: Result<Response<kube::client::Body>>) -> Response<Body> {
    match response {
        Ok(response) => response.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

/// A watch ends when its resource goes away; other answers are over before.
fn until_away(response: Response<Body>, path: String, mut away: watch::Receiver<Option<&'static str>>) -> Response<Body> {
    let gone = async move { away.wait_for(|away| away.is_some_and(|resource| path.ends_with(&format!("/{resource}")))).await.map(drop) };
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(gone))))
}

async fn truncated(response: Result<Response<kube::client::Body>>) -> Response<Body> {
    let response = passed_on(response);
    let bytes = to_bytes(response.into_body(), LARGEST).await.unwrap_or_default();
    bytes.slice(..bytes.len() / 2).into_response()
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "made up by the test", "reason": reason, "code": code.as_u16() });
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}
