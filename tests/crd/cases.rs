//! The table of what is refused: one case at least for every rule and bound of the schema.

use serde_json::{Value, json};

use super::api_server::set;
use super::auth_cases::auth_cases;

/// What is set where in the least EcrCredential, and the one cause that the refusal gives.
pub(crate) struct Case {
    pub(crate) path: &'static str,
    pub(crate) value: Value,
    pub(crate) says: String,
}

pub(crate) fn case(path: &'static str, value: Value, says: &str) -> Case {
    Case { path, value, says: says.to_owned() }
}

const PRIVATE: &str = "spec/registries/0/private";
const ONE_OF: &str = "spec.registries[0]: Invalid value: each entry needs exactly one of private and public, e.g. {private: {region: eu-west-1}} or {public: {}}";
const LABEL_KEY: &str = "Invalid value: each key must be a label key such as team or example.com/team";
const ANNOTATION_KEY: &str = "Invalid value: each key must be an annotation key such as note or example.com/note";
const LABEL_VALUE: &str = "Invalid value: each value must be a label value: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit";
const OWN: &str = "Invalid value: keys under pullsecrets.dev/ and app.kubernetes.io/managed-by are set by the operator: choose other keys";
const HOST: &str = "Invalid value: a host is a lower case DNS name with an optional port, without scheme or path: vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com";
const GLOB: &str = "Invalid value: a namespace name or glob has lower case letters, digits and inner '-', with '*' for any characters and '?' for one";
const ACCOUNT_GLOB: &str = "Invalid value: a ServiceAccount name or glob has lower case letters, digits and inner '-' and '.', with '*' for any characters and '?' for one";
const AGE: &str = "spec.refresh.maxAge: Invalid value: maxAge must be a duration from 1m to 12h, such as 6h or 1h30m";
const REGION: &str = "spec.registries[0].private.region: Invalid value: region must be an AWS region code such as eu-west-1 or us-gov-west-1, not a zone";
const ALL_NAMESPACES: &str = "to select all namespaces, write names: [\"*\"]";

pub(crate) fn cases() -> Vec<Case> {
    let all = [
        metadata(),
        registries(),
        private(),
        public(),
        auth_cases(),
        secret(),
        namespaces(),
        attach(),
        selector(),
        outputs(),
        include(),
        refresh(),
    ];
    all.into_iter().flatten().collect()
}

fn metadata() -> Vec<Case> {
    let too_long =
        "<nil>: Invalid value: metadata.name must have at most 63 characters: it becomes a label value on each Secret";
    vec![
        case("metadata/name", json!("x".repeat(64)), too_long),
        case("spec", json!({ "registries": [{ "public": {} }] }), "spec.namespaces: Required value"),
        case("spec", json!({ "namespaces": { "names": ["a"] } }), "spec.registries: Required value"),
        case("spec", Value::Null, "spec: Required value"),
        case(
            "spec/suspend",
            json!("yes"),
            "spec.suspend: Invalid value: spec.suspend in body must be of type boolean: \"string\"",
        ),
    ]
}

fn registries() -> Vec<Case> {
    let many = |n: usize| json!(vec![json!({ "private": {} }); n]);
    vec![
        case(
            "spec/registries",
            many(0),
            "spec.registries: Invalid value: spec.registries in body should have at least 1 items",
        ),
        case("spec/registries", many(33), "spec.registries: Too many: 33: must have at most 32 items"),
        case("spec/registries", json!([{}]), ONE_OF),
        case("spec/registries", json!([{ "private": {}, "public": {} }]), ONE_OF),
        case("spec/registries", json!([{ "private": null, "public": null }]), ONE_OF),
        case(
            "spec/registries",
            json!([{ "public": {} }, { "private": {} }, { "public": {} }]),
            "spec.registries: Invalid value: only one entry may be public: public.ecr.aws takes one token",
        ),
    ]
}

fn private() -> Vec<Case> {
    let mut cases = vec![];
    let mut add = |field: &'static str, value: Value, says: &str| {
        cases.push(case(PRIVATE, json!({ field: value }), &says.replace('@', "spec.registries[0].private")));
    };
    add("region", json!("a".repeat(33)), "@.region: Too long: may not be more than 32 bytes");
    for text in ["", "eu-west-1a", "EU-WEST-1", "ireland", "eu-west", "eu_west_1", "eu-west-1 "] {
        add("region", json!(text), REGION);
    }
    let ids: Vec<String> = (0..101).map(|n| format!("{n:012}")).collect();
    add("accountIds", json!(ids), "@.accountIds: Too many: 101: must have at most 100 items");
    add("accountIds", json!(["1".repeat(65)]), "@.accountIds[0]: Too long: may not be more than 64 bytes");
    add("accountIds", json!(["111122223333", "111122223333"]), "@.accountIds[1]: Duplicate value: \"111122223333\"");
    for text in ["11112222333", "1111222233334", "1111-2222-3333", "arn:aws:iam::111122223333:root", ""] {
        let says = "@.accountIds[0]: Invalid value: an AWS account id has 12 digits, quoted so that leading zeros stay: \"012345678901\"";
        add("accountIds", json!([text]), says);
    }
    let number = "@.accountIds[0]: Invalid value: @.accountIds[0] in body must be of type string: \"integer\"";
    add("accountIds", json!([111_122_223_333_u64]), number);
    add(
        "hostVariants",
        json!([]),
        "@.hostVariants: Invalid value: @.hostVariants in body should have at least 1 items",
    );
    add("hostVariants", json!(["Fips", "Fips"]), "@.hostVariants[1]: Duplicate value: \"Fips\"");
    let known = "@.hostVariants[0]: Unsupported value: \"fips\": supported values: \"Standard\", \"Fips\", \"DualStack\", \"DualStackFips\"";
    add("hostVariants", json!(["fips"]), known);
    add("apiEndpoint", json!("fips"), &known.replace("hostVariants[0]", "apiEndpoint"));
    let hosts: Vec<String> = (0..33).map(|n| format!("h{n}.example")).collect();
    add("extraHosts", json!(hosts), "@.extraHosts: Too many: 33: must have at most 32 items");
    add("extraHosts", json!([long_host(261)]), "@.extraHosts[0]: Too long: may not be more than 260 bytes");
    add("extraHosts", json!(["a.example", "a.example"]), "@.extraHosts[1]: Duplicate value: \"a.example\"");
    let long_label = format!("{}.example", "a".repeat(64));
    for text in [
        "https://a.example",
        "a.example/path",
        "A.example",
        "a",
        "a..example",
        "-a.example",
        "a-.example",
        "*.example",
        "",
        "a.example:",
        "a.example:0",
        "a.example:65536",
        "a.example:99999",
        "a.example:x",
        &long_label,
    ] {
        add("extraHosts", json!([text]), &format!("@.extraHosts[0]: {HOST}"));
    }
    let ids = "@: Invalid value: requestRegistryIds needs accountIds: name the accounts whose ids are sent";
    add("requestRegistryIds", json!(true), ids);
    cases.push(case(
        PRIVATE,
        json!({ "requestRegistryIds": true, "accountIds": [] }),
        &ids.replace('@', "spec.registries[0].private"),
    ));
    cases
}

fn public() -> Vec<Case> {
    let variants = |value: Value, says: &str| {
        case(
            "spec/registries",
            json!([{ "public": { "hostVariants": value } }]),
            &format!("spec.registries[0].public.hostVariants{says}"),
        )
    };
    vec![
        variants(
            json!([]),
            ": Invalid value: spec.registries[0].public.hostVariants in body should have at least 1 items",
        ),
        variants(json!(["DualStack", "DualStack"]), "[1]: Duplicate value: \"DualStack\""),
        variants(json!(["Fips"]), "[0]: Unsupported value: \"Fips\": supported values: \"Standard\", \"DualStack\""),
    ]
}

/// An output with some fields set, deep in it as `namespaces/names`.
fn output_case(fields: &[(&str, Value)], says: &str) -> Case {
    let mut output = json!({ "name": "out", "format": "DockerConfigFile", "namespaces": { "names": ["a"] } });
    for (path, value) in fields {
        set(&mut output, path, value.clone());
    }
    case("spec/outputs", json!([output]), &says.replace('@', "spec.outputs[0]"))
}

fn outputs() -> Vec<Case> {
    const FORMATS: &str = "\"DockerConfigJson\", \"DockerConfigFile\", \"BasicAuth\", \"ArgoCDHelm\", \"ArgoCDOCI\", \"Jenkins\", \"KargoImage\", \"TektonBasicAuth\"";
    const NAME: &str = "@.name: Invalid value: name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit";
    const HOSTS: &str = "@: Invalid value: host is required, except for DockerConfigJson and DockerConfigFile, which have every host and take none";
    let file = |name: &str| json!({ "name": name, "format": "DockerConfigFile" });
    let many: Vec<Value> = (0..17).map(|n| file(&format!("n{n}"))).collect();
    let host = "public.ecr.aws";
    let mut cases = vec![
        case("spec/outputs", json!(many), "spec.outputs: Too many: 17: must have at most 16 items"),
        case("spec/outputs", json!([file("x"), file("x")]), "spec.outputs[1]: Duplicate value: {\"name\":\"x\"}"),
        case(
            "spec/outputs",
            json!([file("ecr-pull-secret")]),
            "spec: Invalid value: the name of an output must differ from secret.name",
        ),
        case("spec/outputs", json!([{ "format": "DockerConfigFile" }]), "spec.outputs[0].name: Required value"),
        case("spec/outputs", json!([{ "name": "x" }]), "spec.outputs[0].format: Required value"),
        output_case(&[("name", json!("a".repeat(254)))], "@.name: Too long: may not be more than 253 bytes"),
        output_case(
            &[("format", json!("Template"))],
            &format!("@.format: Unsupported value: \"Template\": supported values: {FORMATS}"),
        ),
        output_case(&[("format", json!("Jenkins"))], HOSTS),
        output_case(&[("host", json!(host))], HOSTS),
        output_case(
            &[("format", json!("Jenkins")), ("host", json!(long_host(261)))],
            "@.host: Too long: may not be more than 260 bytes",
        ),
        output_case(
            &[("loginFields", json!("Password"))],
            "@.loginFields: Unsupported value: \"Password\": supported values: \"Auth\", \"AuthUsernamePassword\"",
        ),
    ];
    cases.extend(["", "Pull", "a_b", "-a", "a..b", "a/b"].map(|text| output_case(&[("name", json!(text))], NAME)));
    for text in ["https://a.example", "a.example/x", "A.example", "a", "", "a.example:0"] {
        cases.push(output_case(&[("format", json!("Jenkins")), ("host", json!(text))], &format!("@.host: {HOST}")));
    }
    // Namespaces, labels and annotations are as elsewhere.
    for Case { path, value, says } in namespaces().into_iter().chain(selector()) {
        let field = path.strip_prefix("spec/").unwrap();
        cases.push(output_case(&[(field, value)], &says.replace("spec.namespaces", "@.namespaces")));
    }
    let of_maps =
        secret().into_iter().filter(|case| case.path.ends_with("labels") || case.path.ends_with("annotations"));
    for Case { path, value, says } in of_maps {
        let field = path.strip_prefix("spec/secret/").unwrap();
        cases.push(output_case(&[(field, value)], &says.replace("spec.secret", "@")));
    }
    cases
}

fn include() -> Vec<Case> {
    const NAME: &str = "name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit";
    let including = |secret: Value, says: &str| {
        case("spec/include", json!([{ "secretRef": secret }]), &says.replace('@', "spec.include[0].secretRef"))
    };
    let good = json!({ "namespace": "a", "name": "b" });
    vec![
        case(
            "spec/include",
            json!(vec![json!({ "secretRef": good }); 9]),
            "spec.include: Too many: 9: must have at most 8 items",
        ),
        case("spec/include", json!([{}]), "spec.include[0].secretRef: Required value"),
        including(json!({ "name": "b" }), "@.namespace: Required value"),
        including(json!({ "namespace": "a" }), "@.name: Required value"),
        including(
            json!({ "namespace": "a".repeat(64), "name": "b" }),
            "@.namespace: Too long: may not be more than 63 bytes",
        ),
        including(
            json!({ "namespace": "a", "name": "b".repeat(254) }),
            "@.name: Too long: may not be more than 253 bytes",
        ),
        including(
            json!({ "namespace": "a.b", "name": "b" }),
            "@.namespace: Invalid value: namespace must be the name of a namespace: lower case letters, digits and inner '-'",
        ),
        including(json!({ "namespace": "a", "name": "B" }), &format!("@.name: Invalid value: {NAME}")),
    ]
}

fn secret() -> Vec<Case> {
    let name = "spec.secret.name: Invalid value: secret.name must be a Kubernetes object name: lower case letters, digits, '-' and '.', beginning and ending with a letter or digit";
    let mut cases = vec![
        case("spec/secret/name", json!("a".repeat(254)), "spec.secret.name: Too long: may not be more than 253 bytes"),
        case(
            "spec/secret/conflictPolicy",
            json!("Overwrite"),
            "spec.secret.conflictPolicy: Unsupported value: \"Overwrite\": supported values: \"Fail\", \"Adopt\"",
        ),
        case(
            "spec/secret/deletionPolicy",
            json!("Orphan"),
            "spec.secret.deletionPolicy: Unsupported value: \"Orphan\": supported values: \"Delete\", \"Retain\"",
        ),
        case(
            "spec/secret/loginFields",
            json!("Password"),
            "spec.secret.loginFields: Unsupported value: \"Password\": supported values: \"Auth\", \"AuthUsernamePassword\"",
        ),
        case("spec/secret/labels", map(33, 1), "spec.secret.labels: Too many: 33: must have at most 32 items"),
        case("spec/secret/labels", map(1, 64), "spec.secret.labels.k0: Too long: may not be more than 63 bytes"),
        case(
            "spec/secret/annotations",
            map(33, 1),
            "spec.secret.annotations: Too many: 33: must have at most 32 items",
        ),
        case(
            "spec/secret/annotations",
            map(1, 4097),
            "spec.secret.annotations.k0: Too long: may not be more than 4096 bytes",
        ),
    ];
    cases.extend(
        ["", "Pull", "pull_secret", "-pull", "pull-", "a..b", "a/b"]
            .map(|text| case("spec/secret/name", json!(text), name)),
    );
    for key in wrong_keys() {
        cases.push(case("spec/secret/labels", json!({ &key: "x" }), &format!("spec.secret.labels: {LABEL_KEY}")));
        cases.push(case(
            "spec/secret/annotations",
            json!({ &key: "x" }),
            &format!("spec.secret.annotations: {ANNOTATION_KEY}"),
        ));
    }
    for key in ["pullsecrets.dev/credential", "app.kubernetes.io/managed-by"] {
        cases.push(case("spec/secret/labels", json!({ key: "x" }), &format!("spec.secret.labels: {OWN}")));
        cases.push(case("spec/secret/annotations", json!({ key: "x" }), &format!("spec.secret.annotations: {OWN}")));
    }
    cases.push(case("spec/secret/labels", json!({ "k": "a b" }), &format!("spec.secret.labels: {LABEL_VALUE}")));
    cases
}

fn attach() -> Vec<Case> {
    let path = "spec/attachTo/serviceAccounts";
    let names: Vec<String> = (0..17).map(|n| format!("n{n}")).collect();
    let mut cases = vec![
        case(
            "spec/attachTo/pods",
            json!("Always"),
            "spec.attachTo.pods: Unsupported value: \"Always\": supported values: \"Never\", \"MatchingImages\"",
        ),
        case(path, json!(names), "spec.attachTo.serviceAccounts: Too many: 17: must have at most 16 items"),
        case(
            path,
            json!(["a".repeat(254)]),
            "spec.attachTo.serviceAccounts[0]: Too long: may not be more than 253 bytes",
        ),
        case(path, json!(["a", "a"]), "spec.attachTo.serviceAccounts[1]: Duplicate value: \"a\""),
    ];
    for text in ["Builder", "a_b", "-a", "a-", ""] {
        cases.push(case(path, json!([text]), &format!("spec.attachTo.serviceAccounts[0]: {ACCOUNT_GLOB}")));
    }
    cases
}

fn namespaces() -> Vec<Case> {
    let empty =
        format!("spec.namespaces: Invalid value: namespaces needs names, a selector, or both; {ALL_NAMESPACES}");
    let mut cases = vec![
        case("spec/namespaces", json!({}), &empty),
        case("spec/namespaces", json!({ "names": [] }), &empty),
        case("spec/namespaces", json!({ "exclude": ["kube-*"] }), &empty),
        case("spec/namespaces", json!({ "selector": null }), &empty),
    ];
    for (list, path) in [("names", "spec/namespaces/names"), ("exclude", "spec/namespaces/exclude")] {
        let globs: Vec<String> = (0..257).map(|n| format!("n{n}")).collect();
        cases.push(case(
            path,
            json!(globs),
            &format!("spec.namespaces.{list}: Too many: 257: must have at most 256 items"),
        ));
        cases.push(case(
            path,
            json!(["a".repeat(64)]),
            &format!("spec.namespaces.{list}[0]: Too long: may not be more than 63 bytes"),
        ));
        cases.push(case(path, json!(["a", "a"]), &format!("spec.namespaces.{list}[1]: Duplicate value: \"a\"")));
        for text in ["Team", "team_a", "-team", "team-", "team.a", "", "/^team/"] {
            cases.push(case(path, json!([text]), &format!("spec.namespaces.{list}[0]: {GLOB}")));
        }
    }
    cases
}

fn selector() -> Vec<Case> {
    const PATH: &str = "spec/namespaces/selector";
    let mut cases = vec![];
    let mut add =
        |selector: Value, says: &str| cases.push(case(PATH, selector, &says.replace('@', "spec.namespaces.selector")));
    let empty =
        format!("@: Invalid value: the selector is empty: give matchLabels or matchExpressions; {ALL_NAMESPACES}");
    add(json!({}), &empty);
    add(json!({ "matchLabels": {}, "matchExpressions": [] }), &empty);
    add(json!({ "matchLabels": map(33, 1) }), "@.matchLabels: Too many: 33: must have at most 32 items");
    add(json!({ "matchLabels": map(1, 64) }), "@.matchLabels.k0: Too long: may not be more than 63 bytes");
    for key in wrong_keys() {
        add(json!({ "matchLabels": { key: "x" } }), &format!("@.matchLabels: {LABEL_KEY}"));
    }
    add(json!({ "matchLabels": { "k": "a b" } }), &format!("@.matchLabels: {LABEL_VALUE}"));
    let good = json!({ "key": "k", "operator": "Exists" });
    add(json!({ "matchExpressions": vec![good; 17] }), "@.matchExpressions: Too many: 17: must have at most 16 items");
    let mut expression = |expression: Value, says: &str| {
        add(json!({ "matchExpressions": [expression] }), &says.replace('#', "@.matchExpressions[0]"));
    };
    expression(json!({ "operator": "Exists" }), "#.key: Required value");
    expression(json!({ "key": "k" }), "#.operator: Required value");
    expression(
        json!({ "key": "k".repeat(318), "operator": "Exists" }),
        "#.key: Too long: may not be more than 317 bytes",
    );
    for key in wrong_keys().into_iter() {
        let says = "#.key: Invalid value: key must be a label key such as team or example.com/team";
        expression(json!({ "key": key, "operator": "Exists" }), says);
    }
    let operators =
        "#.operator: Unsupported value: \"Equals\": supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"";
    expression(json!({ "key": "k", "operator": "Equals" }), operators);
    let needs = "#: Invalid value: In and NotIn need values; Exists and DoesNotExist take none";
    expression(json!({ "key": "k", "operator": "In" }), needs);
    expression(json!({ "key": "k", "operator": "NotIn", "values": [] }), needs);
    expression(json!({ "key": "k", "operator": "Exists", "values": ["x"] }), needs);
    expression(json!({ "key": "k", "operator": "DoesNotExist", "values": ["x"] }), needs);
    let values: Vec<String> = (0..65).map(|n| format!("v{n}")).collect();
    expression(
        json!({ "key": "k", "operator": "In", "values": values }),
        "#.values: Too many: 65: must have at most 64 items",
    );
    expression(
        json!({ "key": "k", "operator": "In", "values": ["x".repeat(64)] }),
        "#.values[0]: Too long: may not be more than 63 bytes",
    );
    expression(json!({ "key": "k", "operator": "In", "values": ["x", "x"] }), "#.values[1]: Duplicate value: \"x\"");
    let value = "#.values[0]: Invalid value: a label value has letters, digits, '-', '_' and '.', and begins and ends with a letter or digit";
    expression(json!({ "key": "k", "operator": "In", "values": ["a b"] }), value);
    cases
}

fn refresh() -> Vec<Case> {
    let mut cases = vec![
        case(
            "spec/refresh/atPercent",
            json!(9),
            "spec.refresh.atPercent: Invalid value: spec.refresh.atPercent in body should be greater than or equal to 10",
        ),
        case(
            "spec/refresh/atPercent",
            json!(71),
            "spec.refresh.atPercent: Invalid value: spec.refresh.atPercent in body should be less than or equal to 70",
        ),
        case(
            "spec/refresh/atPercent",
            json!(50.5),
            "spec.refresh.atPercent: Invalid value: spec.refresh.atPercent in body must be of type integer: \"number\"",
        ),
        case(
            "spec/refresh/maxAge",
            json!("1h".repeat(13)),
            "spec.refresh.maxAge: Too long: may not be more than 24 bytes",
        ),
    ];
    let wrong = ["", "6", "1d", "59s", "12h1s", "13h", "-6h", "6 h", "6h30", "1.5h", "360", "99999h99999h"];
    cases.extend(wrong.map(|text| case("spec/refresh/maxAge", json!(text), AGE)));
    cases
}

fn map(entries: usize, length: usize) -> Value {
    (0..entries).map(|n| (format!("k{n}"), json!("x".repeat(length)))).collect::<serde_json::Map<_, _>>().into()
}

fn wrong_keys() -> Vec<String> {
    let long_prefix = format!("{}/k", "a".repeat(254));
    let long_name = "k".repeat(64);
    let texts =
        ["", "a b", "/k", "a/", "a/b/c", "-k", "k-", "Example.com/k", "a..b/k", ".a/k", &long_prefix, &long_name];
    texts.map(str::to_owned).to_vec()
}

fn long_host(length: usize) -> String {
    let labels = "a.".repeat(length / 2);
    format!("{labels}{}", "a".repeat(length - labels.len()))
}
