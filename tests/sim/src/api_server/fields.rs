//! Who owns which field of an object: the part of `managedFields` and of server-side apply that Secrets need.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// A field as `managedFields` writes it, one level a line: `f:metadata`, `f:labels`, `f:team`.
pub type Path = String;

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub applies: bool,
    pub fields: BTreeSet<Path>,
    pub time: String,
}

impl Manager {
    fn render(&self, api_version: &str) -> Value {
        let mut fields = Map::new();
        for path in &self.fields {
            let mut level = &mut fields;
            for part in path.split('\n') {
                level = level.entry(part).or_insert_with(|| json!({})).as_object_mut().expect("an object");
            }
        }
        json!({
            "manager": self.name, "operation": if self.applies { "Apply" } else { "Update" },
            "apiVersion": api_version, "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": fields,
        })
    }
}

/// The entries again that [`render`] has rendered.
pub fn read(rendered: &Value) -> Vec<Manager> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |entry: &Value| {
        let mut fields = BTreeSet::new();
        collect(&entry["fieldsV1"], "", &mut fields);
        Manager {
            name: text(&entry["manager"]),
            applies: entry["operation"] == "Apply",
            fields,
            time: text(&entry["time"]),
        }
    };
    rendered.as_array().into_iter().flatten().map(entry).collect()
}

fn collect(level: &Value, path: &str, fields: &mut BTreeSet<Path>) {
    let inner = level.as_object().filter(|inner| !inner.is_empty());
    if inner.is_none() && !path.is_empty() {
        fields.insert(path.to_owned());
    }
    for (part, below) in inner.into_iter().flatten() {
        let path = if path.is_empty() { part.clone() } else { format!("{path}\n{part}") };
        collect(below, &path, fields);
    }
}

/// All entries; those without a field are left out.
pub fn render(managers: &[Manager], api_version: &str) -> Value {
    managers.iter().filter(|manager| !manager.fields.is_empty()).map(|manager| manager.render(api_version)).collect()
}

/// The fields that a Secret sets, each with its value.
pub fn leaves(object: &Value) -> Vec<(Path, Value)> {
    let mut leaves = Vec::new();
    let mut map = |prefix: &str, value: &Value| {
        for (key, value) in value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            leaves.push((format!("{prefix}\nf:{key}"), value.clone()));
        }
    };
    map("f:metadata\nf:labels", &object["metadata"]["labels"]);
    map("f:metadata\nf:annotations", &object["metadata"]["annotations"]);
    map("f:data", &object["data"]);
    for owner in object["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        let path = format!("f:metadata\nf:ownerReferences\nk:{{\"uid\":{}}}", owner["uid"]);
        leaves.push((path, owner.clone()));
    }
    for finalizer in object["metadata"]["finalizers"].as_array().into_iter().flatten() {
        leaves.push((format!("f:metadata\nf:finalizers\nv:{finalizer}"), finalizer.clone()));
    }
    for field in ["type", "immutable"] {
        if !object[field].is_null() {
            leaves.push((format!("f:{field}"), object[field].clone()));
        }
    }
    leaves
}

/// Sets a field, or takes it out.
pub fn set(object: &mut Value, path: &str, value: Option<&Value>) {
    let names: Vec<&str> = path.split('\n').map(|part| part.strip_prefix("f:").unwrap_or(part)).collect();
    match names.as_slice() {
        ["metadata", "ownerReferences", key] => set_owner(&mut object["metadata"], key, value),
        ["metadata", map, key] => set_key(&mut object["metadata"], map, key, value),
        ["data", key] => set_key(object, "data", key, value),
        [field] => match value {
            Some(value) => object[*field] = value.clone(),
            None => drop(object.as_object_mut().map(|fields| fields.remove(*field))),
        },
        _ => {}
    }
}

fn set_key(parent: &mut Value, map: &str, key: &str, value: Option<&Value>) {
    let parent = parent.as_object_mut().expect("an object");
    match value {
        Some(value) => {
            let map = parent.entry(map.to_owned()).or_insert_with(|| json!({}));
            map[key] = value.clone();
        }
        None => {
            let left = parent.get_mut(map).and_then(Value::as_object_mut);
            if let Some(left) = left {
                left.remove(key);
                if left.is_empty() {
                    parent.remove(map);
                }
            }
        }
    }
}

fn set_owner(metadata: &mut Value, key: &str, value: Option<&Value>) {
    let owners = metadata["ownerReferences"].as_array().cloned().unwrap_or_default();
    let same = |owner: &Value| format!("k:{{\"uid\":{}}}", owner["uid"]) == key;
    let mut owners: Vec<Value> = owners.into_iter().filter(|owner| !same(owner)).collect();
    owners.extend(value.cloned());
    let metadata = metadata.as_object_mut().expect("an object");
    if owners.is_empty() {
        metadata.remove("ownerReferences");
    } else {
        metadata.insert("ownerReferences".to_owned(), owners.into());
    }
}

/// Notes a change by an ordinary write: what changed is the writer's, and nobody else's any more.
pub fn updated(managers: &mut Vec<Manager>, writer: &str, before: Option<&Value>, after: &Value, time: &str) {
    let old = before.map(leaves).unwrap_or_default();
    let new = leaves(after);
    let changed: BTreeSet<Path> = new.iter().filter(|leaf| !old.contains(leaf)).map(|(path, _)| path.clone()).collect();
    let present: BTreeSet<Path> = new.into_iter().map(|(path, _)| path).collect();
    for manager in managers.iter_mut() {
        manager.fields.retain(|path| present.contains(path) && !changed.contains(path));
    }
    if !changed.is_empty() {
        let known = managers.iter_mut().position(|manager| manager.name == writer && !manager.applies);
        let index = known.unwrap_or_else(|| {
            let fresh =
                Manager { name: writer.to_owned(), applies: false, fields: BTreeSet::new(), time: time.to_owned() };
            managers.push(fresh);
            managers.len() - 1
        });
        managers[index].fields.extend(changed);
        time.clone_into(&mut managers[index].time);
    }
    managers.retain(|manager| !manager.fields.is_empty());
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    pub manager: String,
    pub applies: bool,
    pub path: Path,
}

/// Server-side apply: merges `applied` into `live`.
///
/// # Errors
/// The fields that others own with other values, unless forced.
pub fn apply(
    live: &mut Value,
    managers: &mut Vec<Manager>,
    applied: &Value,
    writer: &str,
    force: bool,
    time: &str,
) -> Result<(), Vec<Dispute>> {
    let old = leaves(live);
    let wanted = leaves(applied);
    let changed: Vec<&(Path, Value)> = wanted.iter().filter(|leaf| !old.contains(leaf)).collect();
    let is_me = |manager: &Manager| manager.name == writer && manager.applies;
    let disputes: Vec<Dispute> = managers
        .iter()
        .filter(|manager| !is_me(manager))
        .flat_map(|manager| {
            changed.iter().filter(|(path, _)| manager.fields.contains(path)).map(|(path, _)| Dispute {
                manager: manager.name.clone(),
                applies: manager.applies,
                path: path.clone(),
            })
        })
        .collect();
    if !disputes.is_empty() && !force {
        return Err(disputes);
    }
    for manager in managers.iter_mut().filter(|manager| !is_me(manager)) {
        manager.fields.retain(|path| !changed.iter().any(|(other, _)| other == path));
    }
    let fields: BTreeSet<Path> = wanted.iter().map(|(path, _)| path.clone()).collect();
    let before = managers.iter().position(is_me);
    let dropped: Vec<Path> =
        before.map(|index| managers[index].fields.difference(&fields).cloned().collect()).unwrap_or_default();
    for (path, value) in &wanted {
        set(live, path, Some(value));
    }
    for path in &dropped {
        if !managers.iter().any(|manager| !is_me(manager) && manager.fields.contains(path)) {
            set(live, path, None);
        }
    }
    match before {
        Some(index) if managers[index].fields == fields && changed.is_empty() => {}
        Some(index) => {
            managers[index].fields = fields;
            time.clone_into(&mut managers[index].time);
        }
        None => managers.push(Manager { name: writer.to_owned(), applies: true, fields, time: time.to_owned() }),
    }
    managers.retain(|manager| !manager.fields.is_empty());
    Ok(())
}
