//! Answers that come after the watch has told of more.

use std::sync::Arc;

use serde_json::json;

use super::super::stage::{ACCOUNT, NOW, Stage, token};
use crate::plan::Identity;
use crate::plan::scopes::SecretKey;
use crate::secret::ownership::SecretRecord;

#[tokio::test]
async fn an_answer_that_the_watch_has_overtaken_is_no_news() {
    for (what, gone, known) in [
        ("nothing has come since", None, true),
        ("it has gone since", Some(Some("s")), false),
        ("another has gone since", Some(Some("t")), true),
        ("a list has come without it", Some(None), false),
    ] {
        let stage = Stage::new(json!([{ "private": { "accountIds": [ACCOUNT] } }]));
        let token_spec = stage.plan.registries[0].token_specs[0].clone();
        let desired = stage.desired(&[(token_spec, token("p", NOW + 3600, &Identity::operator()))].into());
        let shared = &stage.ctx.shared;
        stage.sees("b", desired.digest, NOW + 3600);
        let other = shared.state.lock().record("pull", "b").cloned().unwrap();
        let record = Arc::new(SecretRecord { uid: "s".into(), ..(*other).clone() });
        let write = shared.write_begins(SecretKey::new("pull", "a"), None);
        if let Some(uid) = gone {
            shared.secret_gone("pull", "a", uid);
        }
        write.stored(record, &stage.uid);
        assert_eq!(shared.state.lock().record("pull", "a").is_some(), known, "{what}");
    }
}
