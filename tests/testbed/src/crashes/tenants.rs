//! The ground on which each namespace has an AWS identity of its own.

use anyhow::Result;
use serde_json::{Value, json};

use super::workloads::{PUBLIC, counted, label, written};
use crate::bed::Bed;

/// The ServiceAccount of each of these namespaces.
pub(super) const SERVICE_ACCOUNT: &str = "puller";

/// Namespaces and their accounts; the last is not selected at first.
const TENANTS: [(&str, &str); 3] = [("a", "111111111111"), ("b", "222222222222"), ("elsewhere", "333333333333")];

pub(super) async fn ground(bed: &Bed, mut spec: Value) -> Result<()> {
    for (name, account) in TENANTS {
        bed.tenant(name, account, SERVICE_ACCOUNT).await?;
    }
    for (name, _) in &TENANTS[..2] {
        label(bed, name, Some("yes")).await?;
    }
    spec["auth"] = json!({ "serviceAccount": { "fromTargetNamespace": SERVICE_ACCOUNT } });
    bed.credential("x", spec).await?;
    synced(bed, 2).await
}

/// The first so many have logins of their own, and the status knows.
pub(super) async fn synced(bed: &Bed, count: usize) -> Result<()> {
    for (name, account) in &TENANTS[..count] {
        let host = format!("{account}.dkr.ecr.eu-west-1.amazonaws.com");
        written(bed, &bed.secret, &[name], &[&host, PUBLIC]).await?;
    }
    counted(bed, "x", count).await
}
