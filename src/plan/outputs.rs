//! The Secrets that an `EcrCredential` asks for: the pull secret and the outputs, checked against what the installation allows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::namespaces::{Labels, MOST_TOLD, NamespaceMatcher};
use super::scopes::SecretKey;
use super::{Limits, RegistryPlan, SpecError};
use crate::api::registry::Host;
use crate::api::status::Reason;
use crate::api::{EcrCredentialSpec, LoginFields, Output, OutputFormat};

/// One Secret that each of its target namespaces should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretPlan {
    /// Its name in each namespace.
    pub name: Arc<str>,
    /// Whether it is one of `spec.outputs`.
    pub is_output: bool,
    /// Its format.
    pub format: OutputFormat,
    /// The host whose token it holds; none if it holds all hosts.
    pub host: Option<Host>,
    /// Which fields each entry of a docker config has.
    pub login_fields: LoginFields,
    /// Labels besides the operator's own.
    pub labels: BTreeMap<String, String>,
    /// Annotations besides the operator's own.
    pub annotations: BTreeMap<String, String>,
    /// Why it is not written, if the spec or the installation forbids it.
    pub refusal: Option<SpecError>,
}

impl SecretPlan {
    /// The pull secret of a spec.
    pub(super) fn pull_secret(spec: &EcrCredentialSpec) -> Self {
        let template = &spec.secret;
        Self {
            name: template.name.as_str().into(),
            is_output: false,
            format: OutputFormat::DockerConfigJson,
            host: None,
            login_fields: template.login_fields,
            labels: template.labels.clone(),
            annotations: template.annotations.clone(),
            refusal: None,
        }
    }

    /// An output of a spec. If it is invalid, no other Secret is affected.
    pub(super) fn output(
        output: &Output,
        spec: &EcrCredentialSpec,
        registries: &[RegistryPlan],
        limits: &Limits,
    ) -> Self {
        let host = output.host.as_deref().map(Host::parse).transpose();
        let refusal = match &host {
            Err(error) => Some(SpecError::invalid(format!("spec.outputs: {}: {error}", output.name))),
            Ok(host) => unfit(output, host.as_ref(), registries).or_else(|| not_allowed(output, spec, limits)),
        };
        Self {
            name: output.name.as_str().into(),
            is_output: true,
            format: output.format,
            host: host.ok().flatten(),
            login_fields: output.login_fields,
            labels: output.labels.clone(),
            annotations: output.annotations.clone(),
            refusal,
        }
    }
}

/// Why an output is invalid, by the spec alone.
fn unfit(output: &Output, host: Option<&Host>, registries: &[RegistryPlan]) -> Option<SpecError> {
    let (name, format) = (&output.name, output.format.as_str());
    let Some(host) = host else {
        return output
            .format
            .is_of_one_host()
            .then(|| SpecError::invalid(format!("spec.outputs: {name}: the format {format} needs a host")));
    };
    (!registries.iter().any(|registry| registry.may_have(host))).then(|| {
        SpecError::invalid(format!(
            "spec.outputs: {name}: {host} is not a host of spec.registries: correct host, or add the registry"
        ))
    })
}

/// Why the installation does not allow an output in any namespace.
fn not_allowed(output: &Output, spec: &EcrCredentialSpec, limits: &Limits) -> Option<SpecError> {
    let allowed = limits.outputs.as_ref()?;
    let (name, format) = (output.name.as_str(), output.format.as_str());
    let of_this_name = || allowed.iter().filter(|scope| *scope.name == *name);
    if of_this_name().any(|scope| scope.format == output.format) {
        return None;
    }
    let fix = match of_this_name().next() {
        // The chart gives a name one format in a namespace, so that a second entry could be refused.
        Some(other) => format!(
            ", only as {}: use another name, or set format: {format} in the entry of {name} in the chart's outputs",
            other.format.as_str()
        ),
        None => match named_namespaces(output, spec, limits) {
            namespaces if namespaces.is_empty() => {
                format!(": add {}, with namespaces to allow it only in some", entry(name, output.format, &[]))
            }
            namespaces => format!(": add {}", entry(name, output.format, &namespaces)),
        },
    };
    Some(denied(format!("the operator is not allowed to write the Secret {name} as {format}{fix}")))
}

/// The namespaces that an output selects and the installation may write to, if the spec lists them by name. Empty for globs,
/// labels and lists that are too long for a message.
fn named_namespaces<'a>(output: &'a Output, spec: &'a EcrCredentialSpec, limits: &Limits) -> Vec<&'a str> {
    let selection = output.namespaces.as_ref().unwrap_or(&spec.namespaces);
    let is_glob = |name: &String| name.contains(['*', '?']);
    if selection.selector.is_some() || selection.names.iter().any(is_glob) || selection.names.len() > MOST_TOLD {
        return vec![];
    }
    let Ok(matcher) = NamespaceMatcher::parse(selection) else { return vec![] };
    let may_write = |name: &&str| limits.namespaces.as_ref().is_none_or(|allowed| allowed.contains(*name));
    let names = selection.names.iter().map(String::as_str);
    names.filter(|name| matcher.matches(name, &Labels::new())).filter(may_write).collect()
}

/// The installation does not let the operator write an output in a namespace.
pub fn output_not_allowed(name: &str, format: OutputFormat, namespace: &str) -> SpecError {
    let (entry, format) = (entry(name, format, &[namespace]), format.as_str());
    denied(format!("the operator is not allowed to write the Secret {name} as {format} here: add {entry}"))
}

fn denied(message: String) -> SpecError {
    SpecError { reason: Reason::OutputNotAllowed, message }
}

/// The entry that allows an output, and where it belongs.
fn entry(name: &str, format: OutputFormat, namespaces: &[&str]) -> String {
    let format = format.as_str();
    let namespaces = match namespaces {
        [] => String::new(),
        names => format!(", namespaces: [{}]", names.join(", ")),
    };
    format!("{{name: {name}, format: {format}{namespaces}}} to the chart's outputs (flag --output-secret)")
}

/// The installation does not let the operator read an included docker config.
pub fn include_not_allowed(scope: &SecretKey) -> SpecError {
    let SecretKey { namespace, name } = scope;
    let message = format!(
        "the operator is not allowed to read the Secret {scope}: add {{namespace: {namespace}, name: {name}}} to the chart's include.secrets (flag --include-secret)"
    );
    SpecError { reason: Reason::IncludeNotAllowed, message }
}

/// RBAC does not let the operator read an included docker config.
pub fn include_not_readable(scope: &SecretKey) -> SpecError {
    let message = format!(
        "the operator lacks permission to get, list and watch the Secret {scope}: the chart grants it for the entries of include.secrets"
    );
    SpecError { reason: Reason::Forbidden, message }
}

/// A Secret of an `EcrCredential` as far as its targets depend on it.
#[derive(Clone, Debug)]
pub struct WantedSecret {
    /// Its name.
    pub name: Arc<str>,
    /// Its format.
    pub format: OutputFormat,
    /// The namespaces that should hold it; `None` when the spec is not usable, so that none does.
    pub selection: Option<NamespaceMatcher>,
    /// The namespaces in which it may be written; `None` for all.
    pub allowed: Option<BTreeSet<Arc<str>>>,
}

impl WantedSecret {
    /// A pull secret, which may be written in each namespace that is selected.
    pub fn anywhere(name: &str, selection: Option<NamespaceMatcher>) -> Self {
        Self { name: name.into(), format: OutputFormat::DockerConfigJson, selection, allowed: None }
    }

    /// Whether it may be written in a namespace.
    pub fn is_allowed_in(&self, namespace: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(namespace))
    }
}

/// The Secrets that a spec asks for, the pull secret first.
pub fn wanted_secrets(spec: &EcrCredentialSpec, limits: &Limits) -> Vec<WantedSecret> {
    let all = NamespaceMatcher::parse(&spec.namespaces).ok();
    let mut wanted = vec![WantedSecret::anywhere(&spec.secret.name, all.clone())];
    for output in &spec.outputs {
        // If two have the same name, the first counts, and the spec is invalid.
        if wanted.iter().any(|other| *other.name == *output.name) {
            continue;
        }
        let selection = match &output.namespaces {
            Some(namespaces) => NamespaceMatcher::parse(namespaces).ok(),
            None => all.clone(),
        };
        let (name, format, allowed) = (output.name.as_str().into(), output.format, allowed_in(output, limits));
        wanted.push(WantedSecret { name, format, selection, allowed });
    }
    wanted
}

fn allowed_in(output: &Output, limits: &Limits) -> Option<BTreeSet<Arc<str>>> {
    let scopes = limits.outputs.as_ref()?;
    let fit = || scopes.iter().filter(|scope| *scope.name == *output.name && scope.format == output.format);
    if fit().any(|scope| scope.namespace.is_none()) {
        return None;
    }
    Some(fit().filter_map(|scope| scope.namespace.clone()).collect())
}

/// Names that two Secrets of one spec share.
pub(super) fn refuse_equal_names(spec: &EcrCredentialSpec) -> Result<(), SpecError> {
    let mut names = BTreeSet::from([spec.secret.name.as_str()]);
    match spec.outputs.iter().find(|output| !names.insert(&output.name)) {
        None => Ok(()),
        Some(output) => Err(SpecError::invalid(format!(
            "two Secrets of this EcrCredential are named {:?}: give each of spec.outputs a name of its own, other than secret.name",
            output.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;
    use crate::plan::scopes::OutputScope;
    use serde_json::{Value, json};

    const OWN: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

    fn spec(registries: Value, outputs: Value) -> EcrCredentialSpec {
        let spec = json!({ "registries": registries, "outputs": outputs, "namespaces": { "names": ["a"] } });
        serde_json::from_value(spec).unwrap()
    }

    fn scope(namespace: Option<&str>, name: &str, format: OutputFormat) -> OutputScope {
        OutputScope { namespace: namespace.map(Into::into), name: name.into(), format }
    }

    fn limits(outputs: &[OutputScope]) -> Limits {
        Limits { outputs: Some(outputs.iter().cloned().collect()), ..Limits::default() }
    }

    #[test]
    fn an_output_that_may_not_be_written_is_refused_alone_and_says_what_to_set() {
        use OutputFormat::{BasicAuth, Jenkins};
        let registries = json!([{ "private": { "region": "eu-west-1", "accountIds": ["111122223333"] } }]);
        let output = json!([{ "name": "out", "format": "BasicAuth", "host": OWN }]);
        let table = [
            ("allowed everywhere", vec![scope(None, "out", BasicAuth)], None),
            ("allowed in a namespace", vec![scope(Some("b"), "out", BasicAuth)], None),
            (
                "nothing is allowed",
                vec![],
                Some("add {name: out, format: BasicAuth, namespaces: [a]} to the chart's outputs"),
            ),
            (
                "another format",
                vec![scope(None, "out", Jenkins)],
                Some("only as Jenkins: use another name, or set format: BasicAuth in the entry of out"),
            ),
            (
                "another name",
                vec![scope(None, "other", BasicAuth)],
                Some("not allowed to write the Secret out as BasicAuth:"),
            ),
        ];
        for (what, outputs, says) in table {
            let plan = plan(&spec(registries.clone(), output.clone()), &limits(&outputs)).unwrap();
            assert_eq!(plan.secret.refusal, None, "{what}");
            let refusal = plan.outputs[0].refusal.as_ref();
            assert_eq!(refusal.map(|error| error.reason), says.map(|_| Reason::OutputNotAllowed), "{what}");
            assert!(says.is_none_or(|says| refusal.unwrap().message.contains(says)), "{what}: {refusal:?}");
        }
    }

    /// Whoever copies the entry into the values allows the output, and allows it where it is wanted.
    #[test]
    fn the_entry_that_a_refusal_shows_has_the_namespaces_of_the_output() {
        let limited = Limits {
            namespaces: Some(BTreeSet::from(["a".into(), "b".into()])),
            outputs: Some(BTreeSet::new()),
            ..Limits::default()
        };
        let table = [
            ("those of the spec", json!({ "names": ["a", "b"] }), None, &limits(&[]), Some("[a, b]")),
            ("its own", json!({ "names": ["*"] }), Some(json!({ "names": ["ci"] })), &limits(&[]), Some("[ci]")),
            (
                "without what is excluded",
                json!({ "names": ["a", "b"], "exclude": ["b*"] }),
                None,
                &limits(&[]),
                Some("[a]"),
            ),
            ("only where the operator may write", json!({ "names": ["b", "c"] }), None, &limited, Some("[b]")),
            ("a glob", json!({ "names": ["a", "team-*"] }), None, &limits(&[]), None),
            ("a glob of one letter", json!({ "names": ["a?"] }), None, &limits(&[]), None),
            (
                "labels",
                json!({ "names": ["a"], "selector": { "matchLabels": { "k": "v" } } }),
                None,
                &limits(&[]),
                None,
            ),
            ("too many to list", json!({ "names": ["a", "b", "c", "d", "e", "f"] }), None, &limits(&[]), None),
        ];
        for (what, selected, own, limits, namespaces) in table {
            let mut output = json!({ "name": "out", "format": "DockerConfigFile" });
            if let Some(own) = own {
                output["namespaces"] = own;
            }
            let mut spec = spec(json!([{ "public": {} }]), json!([output]));
            spec.namespaces = serde_json::from_value(selected).unwrap();
            let message = plan(&spec, limits).unwrap().outputs[0].refusal.clone().unwrap().message;
            let (own, rest) = match namespaces {
                Some(list) => (format!(", namespaces: {list}"), ""),
                None => (String::new(), ", with namespaces to allow it only in some"),
            };
            let entry = format!("{{name: out, format: DockerConfigFile{own}}}");
            let wanted = format!(": add {entry} to the chart's outputs (flag --output-secret){rest}");
            assert!(message.ends_with(&wanted), "{what}: {message}");
        }
        let here = output_not_allowed("out", OutputFormat::Jenkins, "b").message;
        assert!(
            here.contains("here: add {name: out, format: Jenkins, namespaces: [b]} to the chart's outputs"),
            "{here}"
        );
    }

    #[test]
    fn the_host_of_an_output_is_one_that_is_written() {
        let named = json!([{ "private": { "region": "eu-west-1", "accountIds": ["111122223333"], "extraHosts": ["vpce.example.com"] } }]);
        let own =
            json!([{ "private": { "region": "eu-west-1", "extraHosts": ["vpce.example.com"] } }, { "public": {} }]);
        let table = [
            ("a named account's", &named, OWN, true),
            ("an extra host", &named, "vpce.example.com", true),
            ("another account's", &named, "999999999999.dkr.ecr.eu-west-1.amazonaws.com", false),
            ("the caller's own, whichever it is", &own, OWN, true),
            ("an extra host beside it", &own, "vpce.example.com", true),
            ("another region", &own, "111122223333.dkr.ecr.us-east-1.amazonaws.com", false),
            ("public", &own, "public.ecr.aws", true),
            ("public, not asked for", &named, "public.ecr.aws", false),
            ("public by its other host, not asked for", &own, "ecr-public.aws.com", false),
        ];
        for (what, registries, host, fits) in table {
            let output = json!([{ "name": "out", "format": "Jenkins", "host": host }]);
            let plan = plan(&spec(registries.clone(), output), &Limits::default()).unwrap();
            let refusal = plan.outputs[0].refusal.as_ref();
            assert_eq!(refusal.is_none(), fits, "{what}: {refusal:?}");
            assert!(refusal.is_none_or(|error| error.reason == Reason::InvalidSpec && error.message.contains(host)));
        }
        let without = json!([{ "name": "out", "format": "Jenkins" }]);
        let plan = plan(&spec(named, without), &Limits::default()).unwrap();
        assert!(plan.outputs[0].refusal.as_ref().unwrap().message.contains("needs a host"));
    }

    #[test]
    fn equal_names_are_refused_and_claim_nothing_twice() {
        let registries = json!([{ "public": {} }]);
        let file = |name: &str| json!({ "name": name, "format": "DockerConfigFile" });
        for outputs in [json!([file("ecr-pull-secret")]), json!([file("x"), file("x")])] {
            let spec = spec(registries.clone(), outputs);
            assert!(plan(&spec, &Limits::default()).unwrap_err().message.contains("name"));
            let wanted = wanted_secrets(&spec, &Limits::default());
            let names: BTreeSet<&str> = wanted.iter().map(|wanted| &*wanted.name).collect();
            assert_eq!(names.len(), wanted.len());
        }
    }

    #[test]
    fn an_output_is_wanted_where_it_is_allowed() {
        use OutputFormat::BasicAuth;
        let output = json!([{ "name": "out", "format": "BasicAuth", "host": "public.ecr.aws", "namespaces": { "names": ["*"] } }]);
        let spec = spec(json!([{ "public": {} }]), output);
        let table = [
            (vec![], [false, false]),
            (vec![scope(Some("a"), "out", BasicAuth)], [true, false]),
            (vec![scope(Some("a"), "out", BasicAuth), scope(Some("b"), "out", BasicAuth)], [true, true]),
            (vec![scope(Some("a"), "out", BasicAuth), scope(None, "out", BasicAuth)], [true, true]),
        ];
        for (outputs, expected) in table {
            let wanted = wanted_secrets(&spec, &limits(&outputs));
            assert_eq!(wanted.len(), 2);
            assert_eq!(["a", "b"].map(|namespace| wanted[1].is_allowed_in(namespace)), expected, "{outputs:?}");
        }
    }
}
