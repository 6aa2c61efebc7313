//! I/O: `cargo xtask gen-rights`: the accounts, roles and admission policies of `sriov_operator::rights` as templates of the Helm chart. What they allow is
//! decided there.
//!
//! Invariants: each template is exactly what this module writes, `cargo xtask check` compares them; no other template of the chart has a role.

mod yaml;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sriov_operator::rights::{self, Document, Names, Page, When};

use crate::workspace::Workspace;

const FOLDER: &str = "deploy/chart/templates";
const HEADER: &str = "{{- /* Generated from operator/src/rights by `cargo xtask gen-rights`; do not edit. */ -}}\n";

/// Writes the templates, or with `check` fails when one is not what the builders say, or when a role is written by hand.
pub(crate) fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let files: Vec<(PathBuf, String)> = templates()?.into_iter().map(|(name, text)| (workspace.path(FOLDER).join(name), text)).collect();
    let stale: Vec<_> = files.iter().filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text)).collect();
    if check {
        let names: Vec<String> = stale.iter().map(|(path, _)| format!("{} is not what operator/src/rights says", path.display())).collect();
        ensure!(names.is_empty(), "{}\nrun `cargo xtask gen-rights`", names.join("\n"));
        for entry in fs::read_dir(workspace.path(FOLDER)).context("list the chart's templates")? {
            let path = entry?.path();
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let generated = files.iter().any(|(file, _)| *file == path);
            ensure!(generated || !gives_rights(&text), "{} gives rights by hand: they belong into operator/src/rights", path.display());
        }
        return Ok(());
    }
    for (path, text) in stale {
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Pure: name and text of each template.
fn templates() -> Result<Vec<(&'static str, String)>> {
    let names = Names {
        operator: r#"{{ include "sriov.name" . }}"#.to_owned(),
        namespace: "{{ .Release.Namespace }}".to_owned(),
        secret: "{{ .Values.operator.admissionControllers.certificates.secretNames.operator }}".to_owned(),
    };
    rights::pages(&names).iter().map(|page| Ok((page.file, template(page)?))).collect()
}

/// Pure: true for a template with an object that gives or bounds rights.
fn gives_rights(template: &str) -> bool {
    let kinds = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy"];
    template.lines().any(|line| line.strip_prefix("kind: ").is_some_and(|kind| kinds.contains(&kind.trim())))
}

fn template(page: &Page) -> Result<String> {
    let documents = page.documents.iter().map(document).collect::<Result<Vec<_>>>()?.join("---\n");
    Ok(format!("{HEADER}{}", only(page.when, &documents)))
}

/// A text that is there only after this choice.
fn only(when: Option<When>, text: &str) -> String {
    let condition = match when {
        None => return text.to_owned(),
        Some(When::OwnCertificates) => "not .Values.operator.admissionControllers.certificates.certManager.enabled",
        Some(When::NodeDetector) => ".Values.nodeDetector.enabled",
    };
    format!("{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n")
}

fn document(document: &Document) -> Result<String> {
    let object = serde_json::to_value(&document.object).context("serialise an object")?;
    let mut text = remark(document.why) + &yaml::text(&object)?;
    if !document.grants.is_empty() {
        text += "rules:\n";
    }
    for grant in &document.grants {
        let rule = serde_json::to_value(&grant.rule).context("serialise a rule")?;
        text += &only(grant.when, &(remark(grant.why) + &yaml::text(&serde_json::Value::Array(vec![rule]))?));
    }
    Ok(text)
}

fn remark(why: &str) -> String {
    why.lines().map(|line| format!("# {line}\n")).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_written_reads_back_as_what_was_built() {
        let names = Names { operator: "op".into(), namespace: "ops".into(), secret: "certificates".into() };
        let mut read = 0;
        for page in rights::pages(&names) {
            for document in page.documents {
                let text = super::document(&document).unwrap();
                let text = text.lines().filter(|line| !line.starts_with("{{")).collect::<Vec<_>>().join("\n");
                let back: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
                let mut built = serde_json::to_value(&document.object).unwrap();
                if !document.grants.is_empty() {
                    built["rules"] = document.grants.iter().map(|grant| serde_json::to_value(&grant.rule).unwrap()).collect();
                }
                assert_eq!(back, built, "{text}");
                read += 1;
            }
        }
        assert!(read > 20, "{read}");
    }

    #[test]
    fn values_of_the_chart_are_expressions_and_choices_are_conditions() {
        let templates = templates().unwrap();
        let text = |name: &str| &templates.iter().find(|(file, _)| *file == name).unwrap().1;
        let operator = text("operator-rights.yaml");
        assert!(operator.contains("\n  name: {{ include \"sriov.name\" . }}\n  namespace: {{ .Release.Namespace }}\n"), "{operator}");
        let choice = "{{- if not .Values.operator.admissionControllers.certificates.certManager.enabled }}\n# Its certificates move on.\n";
        assert!(operator.contains(choice), "{operator}");
        assert!(text("hooks-rights.yaml").contains("name: {{ include \"sriov.name\" . }}-uninstall\n"));
        let detector = text("node-detector-rights.yaml");
        assert!(detector.starts_with(&format!("{HEADER}{{{{- if .Values.nodeDetector.enabled }}}}\n")) && detector.ends_with("{{- end }}\n"));
        assert!(detector.contains("'system:serviceaccount:{{ .Release.Namespace }}:sriov-node-detector'"), "{detector}");
    }

    #[test]
    fn a_role_by_hand_is_found() {
        assert!(gives_rights("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n"));
        assert!(gives_rights("# why\nkind: ClusterRole\n"));
        assert!(!gives_rights("kind: Deployment\nspec:\n  roleRef:\n    kind: Role\n"));
    }
}
