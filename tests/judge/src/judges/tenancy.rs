//! I17: whose logins stand in a tenant's namespace.

use super::well_formed::logins;
use crate::evidence::{Evidence, Holder, Write};
use crate::{Invariant, Violation};

/// I17: no version of any Secret in a tenant's namespace holds a login that AWS issued to somebody else, whoever wrote it; and
/// the operator writes none that AWS did not issue.
pub(super) fn tenancy(evidence: &Evidence) -> Vec<Violation> {
    if evidence.tenants.is_empty() {
        return vec![];
    }
    let writes = evidence.secret_writes().filter(|write| !write.version.deleted);
    writes.flat_map(|write| strangers(evidence, &write)).collect()
}

fn strangers(evidence: &Evidence, write: &Write<'_>) -> Vec<Violation> {
    let Some(own) = evidence.tenants.get(&write.key.namespace) else { return vec![] };
    // What cannot be read is for I3 to say.
    let auths = logins(&write.version.object).unwrap_or_default();
    let faults = auths.iter().filter_map(|(host, auth)| match evidence.aws.issued.get(auth) {
        Some(holder) if is_of(holder, own) => None,
        Some(holder) => Some(format!("the login for {host} was issued to {}", holder.principal)),
        None if write.version.by_operator => Some(format!("the login for {host} was issued to nobody")),
        None => None,
    });
    faults.map(|fault| Violation::new(Invariant::I17Tenancy, write.key.about(), write.version.sent, fault)).collect()
}

fn is_of(holder: &Holder, own: &std::collections::BTreeSet<String>) -> bool {
    own.contains(&holder.principal) || holder.role.as_ref().is_some_and(|role| own.contains(role))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Story, holder, secret};

    /// Two tenants: `a` with a role, `b` with a user. Passwords say whom they were issued to.
    fn story() -> Story {
        let mut story = Story::new();
        let role = "arn:aws:iam::111122223333:role/a".to_owned();
        let user = "arn:aws:iam::111122223333:user/b".to_owned();
        story.tenants = [("a".to_owned(), [role.clone()].into()), ("b".to_owned(), [user.clone()].into())].into();
        let auth = |password: &str| format!("AWS:{password}");
        let session = "arn:aws:sts::111122223333:assumed-role/a/x";
        story.aws.issued =
            [(auth("of-a"), Holder { role: Some(role), ..holder(session) }), (auth("of-b"), holder(&user))].into();
        story
    }

    fn found(story: Story) -> Vec<(String, String)> {
        tenancy(&story.evidence()).into_iter().map(|violation| (violation.about, violation.detail)).collect()
    }

    #[test]
    fn each_tenant_has_its_own_login() {
        let in_b = secret().set("/metadata/namespace", "b".into());
        assert_eq!(found(story().operator_writes(secret().value("of-a")).operator_writes(in_b.value("of-b"))), []);
    }

    #[test]
    fn anothers_login_is_found_in_any_version_whoever_wrote_it() {
        let detail =
            "the login for 111122223333.dkr.ecr.eu-west-1.amazonaws.com was issued to arn:aws:iam::111122223333:user/b";
        let expected = [("a/pull".to_owned(), detail.to_owned())];
        let mended = |story: Story| story.operator_writes(secret().value("of-a"));
        assert_eq!(found(mended(story().operator_writes(secret().value("of-b")))), expected);
        assert_eq!(found(mended(story().other_writes(secret().value("of-b")))), expected);
    }

    #[test]
    fn a_login_that_nobody_was_issued_is_the_operators_fault_only_if_it_wrote_it() {
        assert_eq!(found(story().operator_writes(secret().value("of-a")).other_writes(secret().value("garbage"))), []);
        let written = found(story().operator_writes(secret().value("garbage")));
        assert!(written.len() == 1 && written[0].1.ends_with("was issued to nobody"), "{written:?}");
    }

    #[test]
    fn a_namespace_of_nobody_may_hold_any_login() {
        let in_c = secret().set("/metadata/namespace", "c".into());
        assert_eq!(found(story().operator_writes(in_c.value("of-b"))), []);
    }
}
