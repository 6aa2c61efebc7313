//! Pure: the API server's AdmissionReview (`admission.k8s.io/v1`): the question in loose form, the answer, and its JSON.
//!
//! Invariant: warnings are such that the API server passes them on whole: few, short, one line each.

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The API server may cut longer ones (k8s.io/apiserver, audit and warning limits).
const LONGEST_WARNING: usize = 256;
/// Together they stay below the 4096 bytes that the API server passes on whole.
const MOST_WARNINGS: usize = 14;

/// What a client asks of the API server.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    request: Option<Request>,
}

/// One write that is to be judged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Request {
    /// To be repeated in the answer.
    pub uid: String,
    /// What kind of object.
    pub kind: Kind,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Empty when the API server is to make one up.
    pub name: String,
    /// As it is to become; null when it is deleted.
    pub object: Value,
    /// As it is; null when it is new.
    pub old_object: Value,
}

/// Group and version are not asked for: each path serves kinds of one group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Kind {
    /// Its name.
    pub kind: String,
}

/// A review that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("failed to read the AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the AdmissionReview is of version {0:?}: only admission.k8s.io/v1 is understood")]
    Version(String),
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

impl Request {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let review: Review = serde_json::from_slice(body)?;
        if review.api_version != "admission.k8s.io/v1" {
            return Err(Unreadable::Version(review.api_version));
        }
        review.request.ok_or(Unreadable::NoRequest)
    }

    /// The object as a type, with the namespace and name of the request.
    pub(super) fn object<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_value(self.object.clone()).map_err(|error| format!("the object could not be read: {error}"))
    }

    /// True when only metadata or status differ from what is stored: nothing is asked for that was not there.
    pub(super) fn leaves_spec(&self) -> bool {
        self.operation == "UPDATE" && self.object.get("spec") == self.old_object.get("spec")
    }
}

/// What the API server is told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Why the write is refused; `None` lets it pass.
    pub refusal: Option<String>,
    /// For the person who writes.
    pub warnings: Vec<String>,
    /// JSON patch operations (RFC 6902).
    pub patch: Vec<Value>,
}

impl Answer {
    /// Lets it pass.
    pub(super) fn allow() -> Self {
        Self::default()
    }

    /// Refuses.
    pub(super) fn refuse(why: impl Into<String>) -> Self {
        Self { refusal: Some(why.into()), ..Self::default() }
    }

    /// As an AdmissionReview.
    pub(super) fn review(self, uid: &str) -> Value {
        let mut response = json!({ "uid": uid, "allowed": self.refusal.is_none() });
        if let Some(why) = self.refusal {
            // Code 422 is what the API server itself answers for invalid objects.
            response["status"] = json!({ "code": 422, "reason": "Invalid", "message": why });
        } else if !self.patch.is_empty() {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(ByteString(Value::Array(self.patch).to_string().into_bytes()));
        }
        let warnings = presentable(self.warnings);
        if !warnings.is_empty() {
            response["warnings"] = json!(warnings);
        }
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
    }
}

fn presentable(mut warnings: Vec<String>) -> Vec<String> {
    if warnings.len() > MOST_WARNINGS {
        let more = warnings.len() - (MOST_WARNINGS - 1);
        warnings.truncate(MOST_WARNINGS - 1);
        warnings.push(format!("and {more} more"));
    }
    warnings.iter().map(|warning| one_line(warning)).collect()
}

fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() <= LONGEST_WARNING {
        return clean;
    }
    let mut end = LONGEST_WARNING - 3;
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &clean[..end])
}

/// The first of `names` and how many more there are.
pub(super) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 4;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_the_uid_and_carries_its_patch_in_base64() {
        let answer =
            Answer { patch: vec![json!({ "op": "add", "path": "/a", "value": 1 })], warnings: vec!["two\nlines".into()], ..Answer::default() };
        let review = answer.review("u-1");
        assert_eq!(review["response"]["uid"], "u-1");
        assert_eq!(review["response"]["allowed"], true);
        let patch: ByteString = serde_json::from_value(review["response"]["patch"].clone()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&patch.0).unwrap()[0]["path"], "/a");
        assert_eq!(review["response"]["warnings"], json!(["two lines"]));
    }

    #[test]
    fn a_refused_write_is_not_patched() {
        let answer = Answer { refusal: Some("no".into()), patch: vec![json!({})], ..Answer::default() };
        let review = answer.review("u");
        assert_eq!(review["response"]["allowed"], false);
        assert_eq!(review["response"]["status"]["message"], "no");
        assert!(review["response"].get("patch").is_none());
    }

    #[test]
    fn warnings_stay_few_and_short() {
        let long = presentable(vec!["ä".repeat(300)]);
        assert!(long[0].len() <= LONGEST_WARNING && long[0].ends_with("..."));
        let many = presentable((0..40).map(|n| n.to_string()).collect());
        assert_eq!((many.len(), many.last().unwrap().as_str()), (MOST_WARNINGS, "and 27 more"));
        const { assert!(MOST_WARNINGS * LONGEST_WARNING <= 4096) };
    }

    #[test]
    fn what_is_no_review_is_said_so() {
        assert!(matches!(Request::parse(b"{"), Err(Unreadable::Json(_))));
        assert!(matches!(Request::parse(br#"{"apiVersion":"admission.k8s.io/v1beta1","request":{}}"#), Err(Unreadable::Version(_))));
        assert!(matches!(Request::parse(br#"{"apiVersion":"admission.k8s.io/v1"}"#), Err(Unreadable::NoRequest)));
        assert!(matches!(Request::parse("[".repeat(100_000).as_bytes()), Err(Unreadable::Json(_))), "depth is limited");
    }
}
