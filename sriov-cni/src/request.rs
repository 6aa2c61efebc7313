//! Pure: one call of the plugin: the `CNI_*` environment and standard input, checked as CNI 1.1 asks before anything is read from the machine.
//!
//! What does not live here: the network configuration itself (`conf`).

use std::path::PathBuf;

/// The verb of a call (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// Verify an attachment.
    Check,
    /// Remove what no container uses any more.
    Gc,
    /// Tell whether ADD would be possible.
    Status,
    /// Tell the versions spoken.
    Version,
}

/// One call of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The verb.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for verbs that take none.
    pub container_id: String,
    /// `CNI_IFNAME`, the name of the interface in the container; empty for verbs that take none.
    pub if_name: String,
    /// `CNI_NETNS`, a path; absent when the namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_NETNS_OVERRIDE` is `true` or `1`: the container may live in the plugin's own namespace.
    pub netns_override: bool,
    /// `CNI_ARGS` as given, for the plugins that we call.
    pub args: String,
    /// The `MAC` of `CNI_ARGS`.
    pub args_mac: Option<String>,
    /// `CNI_PATH`: where other plugins are searched, in order.
    pub path: Vec<PathBuf>,
    /// The network configuration, as given.
    pub stdin: Vec<u8>,
}

/// An environment that does not describe a call. CNI error code 4.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A variable that the verb needs is missing or empty.
    #[error("environment variable {name} is missing: {verb} needs it")]
    Missing {
        /// The variable.
        name: &'static str,
        /// The verb.
        verb: String,
    },
    /// A variable holds something else than it may.
    #[error("environment variable {name} is {given:?}: allowed is {allowed}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it holds.
        given: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

impl Command {
    /// The verb as `CNI_COMMAND` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version].into_iter().find(|c| c.as_str() == text)
    }

    fn names_a_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

impl Request {
    /// The call that `variable` (a view of the environment) and `stdin` describe.
    pub fn parse(variable: impl Fn(&str) -> Option<String>, stdin: Vec<u8>) -> Result<Self, RequestError> {
        let variable = |name: &'static str| variable(name).filter(|v| !v.is_empty());
        let given = variable("CNI_COMMAND").ok_or(RequestError::Missing { name: "CNI_COMMAND", verb: "each call".to_owned() })?;
        let command =
            Command::parse(&given).ok_or(RequestError::Invalid { name: "CNI_COMMAND", given, allowed: "ADD, DEL, CHECK, GC, STATUS or VERSION" })?;
        let needed = |name| variable(name).ok_or(RequestError::Missing { name, verb: command.as_str().to_owned() });

        let mut request = Self {
            command,
            container_id: String::new(),
            if_name: String::new(),
            netns: variable("CNI_NETNS").map(PathBuf::from),
            netns_override: variable("CNI_NETNS_OVERRIDE").is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")),
            args: variable("CNI_ARGS").unwrap_or_default(),
            args_mac: None,
            path: Vec::new(),
            stdin,
        };
        if command == Command::Version {
            return Ok(request);
        }
        request.path = needed("CNI_PATH")?.split(':').filter(|p| !p.is_empty()).map(PathBuf::from).collect();
        if command.names_a_container() {
            request.container_id = checked("CNI_CONTAINERID", needed("CNI_CONTAINERID")?, is_identifier, IDENTIFIER)?;
            request.if_name = checked("CNI_IFNAME", needed("CNI_IFNAME")?, is_interface_name, INTERFACE_NAME)?;
            request.args_mac = mac_of_args(&request.args)?;
        }
        if matches!(command, Command::Add | Command::Check) {
            needed("CNI_NETNS")?;
        }
        Ok(request)
    }
}

const IDENTIFIER: &str = "a letter or digit, then letters, digits, '_', '.' and '-'";
const INTERFACE_NAME: &str = "one to 15 characters without '/', ':' and blanks, not '.' or '..'";
const ARGS: &str = "KEY=VALUE pairs with ';' between; keys are IgnoreUnknown, IP, MAC, K8S_*, and any other with IgnoreUnknown=1";

fn checked(name: &'static str, given: String, is_valid: fn(&str) -> bool, allowed: &'static str) -> Result<String, RequestError> {
    if is_valid(&given) { Ok(given) } else { Err(RequestError::Invalid { name, given, allowed }) }
}

/// The form that CNI asks of container ids and network names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The form that the kernel asks of interface names (`dev_valid_name`).
fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

/// The MAC of CNI_ARGS. An unknown key is an error unless `IgnoreUnknown` is set, as in the reference library (`types.LoadArgs`).
pub fn mac_of_args(args: &str) -> Result<Option<String>, RequestError> {
    let wrong = || RequestError::Invalid { name: "CNI_ARGS", given: args.to_owned(), allowed: ARGS };
    let pairs: Vec<(&str, &str)> = args.split(';').filter(|p| !p.is_empty()).map(|p| p.split_once('=')).collect::<Option<_>>().ok_or_else(wrong)?;
    let ignore = pairs.iter().any(|(key, value)| *key == "IgnoreUnknown" && matches!(*value, "1" | "true" | "True" | "TRUE"));
    let known = |key: &str| matches!(key, "IgnoreUnknown" | "IP" | "MAC") || key.starts_with("K8S_");
    if !ignore && pairs.iter().any(|(key, _)| !known(key)) {
        return Err(wrong());
    }
    Ok(pairs.iter().find(|(key, value)| *key == "MAC" && !value.is_empty()).map(|(_, value)| (*value).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Request, RequestError> {
        Request::parse(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()), Vec::new())
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "net1"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];

    fn add_with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        ADD.into_iter().filter(|(n, _)| *n != name).chain([(name, value)]).collect()
    }

    #[test]
    fn an_add_carries_its_environment() {
        let request = parse(&add_with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=p;MAC=02:00:00:00:00:01;colour=red")).unwrap();
        assert_eq!(request.command, Command::Add);
        assert_eq!((request.container_id.as_str(), request.if_name.as_str()), ("c0ffee", "net1"));
        assert_eq!(request.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
        assert_eq!(request.args_mac.as_deref(), Some("02:00:00:00:00:01"));
    }

    #[test]
    fn a_missing_variable_is_named() {
        for missing in ADD.map(|(name, _)| name) {
            let error = parse(&add_with(missing, "")).unwrap_err();
            assert!(matches!(error, RequestError::Missing { name, .. } if name == missing), "{error}");
        }
    }

    #[test]
    fn del_needs_no_namespace_and_version_needs_nothing() {
        let mut del = add_with("CNI_NETNS", "");
        del.retain(|(name, _)| *name != "CNI_COMMAND");
        del.push(("CNI_COMMAND", "DEL"));
        assert_eq!(parse(&del).unwrap().netns, None);
        assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]).unwrap().command, Command::Version);
        assert!(parse(&[("CNI_COMMAND", "STATUS")]).is_err());
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_allowed() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "a-name-that-is-too-long"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", ".."),
            ("CNI_ARGS", "MAC"),
            ("CNI_ARGS", "colour=red"),
        ] {
            let error = parse(&add_with(name, value)).unwrap_err();
            assert!(matches!(&error, RequestError::Invalid { name: n, given, .. } if *n == name && given == value), "{error}");
        }
    }
}
