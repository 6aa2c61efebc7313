//! Pure: which crates each package of the product must not link, and what a list of its dependencies says against that.
//!
//! Invariant: the list is that of one package built alone (`cargo tree --package`), because features that another member turns on are not its own.

/// What one package must stay free of.
pub(super) struct Wall {
    package: &'static str,
    /// Crate names; a trailing `*` stands for any rest.
    without: &'static [&'static str],
    reason: &'static str,
}

/// The product's programs: none may depend on another, they meet in files and in the API only.
const PROGRAMS: [&str; 5] = ["sriov-operator", "sriov-config-daemon", "sriov-device-plugin", "sriov-cni", "kubectl-sriov"];
/// What only serves tests and the work in this repository.
const WORKSHOP: [&str; 2] = ["sriov-tests", "xtask"];

const WALLS: [Wall; 7] = [
    Wall {
        package: "sriov-host",
        without: &[
            "kube",
            "kube-*",
            "k8s-openapi",
            "sriov-crds",
            "tokio",
            "tokio-*",
            "async-*",
            "futures*",
            "mio",
            "*yaml*",
            "serde-saphyr",
            "granit-*",
        ],
        reason: "it is the Linux machine only: no Kubernetes, synchronous, no YAML",
    },
    Wall {
        package: "sriov-crds",
        without: &[
            "sriov-host",
            "kube-client",
            "kube-runtime",
            "tokio",
            "tokio-*",
            "hyper",
            "hyper-*",
            "tower",
            "tonic*",
            "reqwest",
            "rustls*",
            "mio",
            "socket2",
            "rustix",
            "nix",
            "netlink-*",
            "rtnetlink",
            "tempfile",
        ],
        reason: "it is data: it does no I/O",
    },
    Wall {
        package: "sriov-cni",
        without: &[
            "sriov-crds",
            "kube",
            "kube-*",
            "k8s-openapi",
            "tokio",
            "tokio-*",
            "async-*",
            "futures*",
            "mio",
            "hyper",
            "hyper-*",
            "tower",
            "tonic*",
            "prost*",
            "rustls*",
            "ring",
            "openssl*",
            "aws-lc-*",
            "clap",
            "clap_*",
            "regex*",
            "tracing-subscriber",
        ],
        reason: "it is started for every pod: small, and without a runtime, a cluster client or TLS",
    },
    Wall {
        package: "sriov-operator",
        without: &["sriov-host", "netlink-*", "rtnetlink", "neli", "nix", "genetlink"],
        reason: "it is the cluster side: it touches no machine",
    },
    Wall {
        package: "sriov-device-plugin",
        without: &["sriov-crds", "kube", "kube-*", "k8s-openapi", "rustls*", "openssl*", "ring", "reqwest"],
        reason: "it holds no cluster credentials: a file and the kubelet's sockets are all it knows",
    },
    Wall {
        package: "sriov-config-daemon",
        without: &["rtnetlink", "nix", "openssl", "openssl-sys"],
        reason: "the machine is reached through sriov-host only",
    },
    Wall {
        package: "kubectl-sriov",
        without: &["sriov-host", "netlink-*", "rtnetlink", "nix", "axum", "tonic*"],
        reason: "it runs on a person's own machine and knows the API only",
    },
];

/// The wall around one package.
pub(super) fn of(package: &str) -> Option<&'static Wall> {
    WALLS.iter().find(|wall| wall.package == package)
}

/// What is wrong with the dependencies of the package, one `<name> v<version> ...` a line as cargo tree prints them, the package itself first.
pub(super) fn violations(wall: &Wall, tree: &str) -> Vec<String> {
    let mut names: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if names.first() != Some(&wall.package) {
        return vec![format!("the list of dependencies does not begin with {}", wall.package)];
    }
    names.remove(0);
    names.sort_unstable();
    names.dedup();
    let program = PROGRAMS.iter().filter(|program| **program != wall.package);
    let others: Vec<&str> = program.chain(&WORKSHOP).copied().collect();
    let unwanted = names.iter().filter(|name| wall.without.iter().any(|pattern| matches(pattern, name)));
    let walled = unwanted.map(|name| format!("{} links {name}: {}", wall.package, wall.reason));
    let crossed =
        names.iter().filter(|name| others.contains(name)).map(|name| format!("{} links {name}: no program depends on another", wall.package));
    walled.chain(crossed).collect()
}

/// `*` at the start or the end of the pattern stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) => name.contains(pattern.trim_matches('*')),
        (Some(end), None) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(package: &str, dependency: &str) -> bool {
        let wall = of(package).unwrap();
        let tree = format!("{package} v0.1.0 (/somewhere)\nserde v1.0.0\n{dependency} v2.0.0\n");
        !violations(wall, &tree).is_empty()
    }

    #[test]
    fn each_wall_refuses_what_it_stands_against() {
        let crossings = [
            ("sriov-host", "kube"),
            ("sriov-host", "tokio"),
            ("sriov-host", "serde-saphyr"),
            ("sriov-host", "serde_yaml_ng"),
            ("sriov-host", "sriov-crds"),
            ("sriov-crds", "kube-client"),
            ("sriov-crds", "hyper-util"),
            ("sriov-crds", "sriov-host"),
            ("sriov-cni", "tokio"),
            ("sriov-cni", "kube-core"),
            ("sriov-cni", "tonic"),
            ("sriov-cni", "rustls-pki-types"),
            ("sriov-operator", "sriov-host"),
            ("sriov-operator", "netlink-packet-route"),
            ("sriov-device-plugin", "kube"),
            ("sriov-device-plugin", "k8s-openapi"),
            ("sriov-config-daemon", "rtnetlink"),
            ("kubectl-sriov", "sriov-host"),
            ("kubectl-sriov", "sriov-operator"),
        ];
        for (package, dependency) in crossings {
            assert!(refused(package, dependency), "{package} may link {dependency}");
        }
    }

    #[test]
    fn no_program_may_depend_on_another_or_on_the_workshop() {
        for program in PROGRAMS {
            for other in PROGRAMS.iter().chain(&WORKSHOP).filter(|other| **other != program) {
                assert!(refused(program, other), "{program} may link {other}");
            }
        }
    }

    #[test]
    fn what_a_package_needs_is_let_through() {
        for (package, dependency) in [
            ("sriov-host", "netlink-sys"),
            ("sriov-crds", "kube-core"),
            ("sriov-cni", "sriov-host"),
            ("sriov-operator", "kube-client"),
            ("sriov-device-plugin", "tokio"),
        ] {
            assert!(!refused(package, dependency), "{package} may not link {dependency}");
        }
    }

    #[test]
    fn an_empty_or_foreign_list_is_not_a_clean_one() {
        let wall = of("sriov-cni").unwrap();
        assert_eq!(violations(wall, "").len(), 1);
        assert_eq!(violations(wall, "sriov-host v0.1.0\n").len(), 1);
    }

    #[test]
    fn every_program_has_a_wall() {
        for program in PROGRAMS {
            assert!(of(program).is_some(), "{program} has none");
        }
    }
}
