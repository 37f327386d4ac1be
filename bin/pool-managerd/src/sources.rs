//! Where the replicas come from: the settings' URLs, and the handoffs. Pure but for reading recipes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine_provisioner::recipe::{self, Recipe};
use handoff_watcher::HandoffSet;
use http::HeaderValue;
use pool_registry_types::{Handoff, ReplicaState};
use upstream::Origin;

use crate::door::Pending;
use crate::gpu::parse_mask;
use crate::plan::Key;
use crate::pools::{Engines, Pool};
use crate::replica::EngineTraits;

/// What a replica is made from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Another one means another engine: a new replica with a new ledger.
    pub(crate) identity: SourceIdentity,
    pub(crate) origin: Origin,
    pub(crate) paths: recipe::Probe,
    pub(crate) traits: EngineTraits,
}

/// Tells one engine from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceIdentity {
    url: String,
    engine: String,
    pid: Option<u32>,
    start_time_ticks: Option<u64>,
    pub(crate) key: Option<HeaderValue>,
}

/// The recipes that were needed so far.
#[derive(Debug, Default)]
pub(crate) struct Recipes {
    directory: Option<PathBuf>,
    read: BTreeMap<String, Recipe>,
}

impl Recipes {
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            read: BTreeMap::new(),
        }
    }

    /// The recipe of this name. An engine without one is probed and spoken to like any OpenAI-shaped server.
    fn get(&mut self, name: &str) -> &Recipe {
        self.read.entry(name.to_owned()).or_insert_with(|| {
            Recipe::load(name, self.directory.as_deref()).unwrap_or_else(|error| {
                tracing::warn!(engine = name, %error, "probed as an OpenAI-shaped server instead");
                Recipe::load("openai", None).expect("the recipe is built in")
            })
        })
    }
}

/// Every replica that there should be an address for; where there is none that may be used, the reason.
pub(crate) fn sources(
    pools: &[Pool],
    handoffs: &HandoffSet,
    recipes: &mut Recipes,
) -> BTreeMap<Key, Result<Source, Pending>> {
    let mut found = BTreeMap::new();
    for (key, handoff) in &handoffs.handoffs {
        let pool = pools.iter().find(|pool| pool.id == key.0);
        found.insert(
            key.clone(),
            of_handoff(handoff, pool, recipes.get(&handoff.engine)),
        );
    }
    for pool in pools {
        let Engines::Running { origins, key } = &pool.engines else {
            continue;
        };
        for (replica, origin) in origins {
            // A person's word in the settings wins over a file.
            let source = of_settings(pool, origin, key.as_ref());
            found.insert((pool.id.clone(), replica.clone()), Ok(source));
        }
    }
    found
}

fn of_handoff(handoff: &Handoff, pool: Option<&Pool>, recipe: &Recipe) -> Result<Source, Pending> {
    let refused = |note: String| Pending {
        engine: handoff.engine.clone(),
        state: ReplicaState::Failed,
        note: Some(note),
    };
    let origin: Origin = handoff
        .url
        .parse()
        .map_err(|error| refused(format!("its handoff's url: {error}")))?;
    if !origin.is_loopback() {
        return Err(refused(format!(
            "the handoff's url {} is not on loopback, where engines must listen; name an engine elsewhere by `url` in \
             [[pools]]",
            handoff.url
        )));
    }
    let same = pool.filter(|pool| pool.recipe.name == recipe.name);
    let traits = EngineTraits {
        engine: handoff.engine.clone(),
        dialects: same.map_or_else(|| recipe.dialects.clone(), |pool| pool.dialects.clone()),
        cancel_on_stream_only: recipe.cancel_on_stream_only,
        media: pool.and_then(|pool| pool.media),
        media_of_recipe: recipe.media,
        engine_version: Some(handoff.engine_version.clone()).filter(|version| !version.is_empty()),
        slots: handoff.slots.or(pool.and_then(|pool| pool.slots)),
        model_aliases: pool.map(|pool| pool.aliases.clone()).unwrap_or_default(),
        gpus: match &handoff.device_mask {
            Some(mask) => parse_mask(mask),
            None => pool.and_then(|pool| pool.gpus.clone()),
        },
    };
    let identity = SourceIdentity {
        url: handoff.url.clone(),
        engine: handoff.engine.clone(),
        pid: handoff.pid,
        start_time_ticks: handoff.start_time_ticks,
        key: None,
    };
    Ok(Source {
        identity,
        origin,
        paths: recipe.probe.clone(),
        traits,
    })
}

fn of_settings(pool: &Pool, origin: &Origin, key: Option<&HeaderValue>) -> Source {
    let traits = EngineTraits {
        engine: pool.recipe.name.clone(),
        dialects: pool.dialects.clone(),
        cancel_on_stream_only: pool.recipe.cancel_on_stream_only,
        media: pool.media,
        media_of_recipe: pool.recipe.media,
        engine_version: None,
        slots: pool.slots,
        model_aliases: pool.aliases.clone(),
        gpus: pool.gpus.clone(),
    };
    let identity = SourceIdentity {
        url: format!("{}{}", origin.authority(), origin.base_path()),
        engine: pool.recipe.name.clone(),
        pid: None,
        start_time_ticks: None,
        key: key.cloned(),
    };
    Source {
        identity,
        origin: origin.clone(),
        paths: pool.recipe.probe.clone(),
        traits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::AgentsConfig;
    use crate::pools::{PoolSettings, check_pools};

    fn set(text: &str) -> HandoffSet {
        let handoff: Handoff = serde_json::from_str(text).unwrap();
        let key = (handoff.pool_id.clone(), handoff.replica_id.clone());
        HandoffSet {
            handoffs: BTreeMap::from([(key, handoff)]),
            problems: BTreeMap::new(),
        }
    }

    fn one(text: &str, pools: &[Pool]) -> Result<Source, Pending> {
        sources(pools, &set(text), &mut Recipes::default())
            .into_values()
            .next()
            .unwrap()
    }

    fn file(url: &str, more: &str) -> String {
        format!(r#"{{"pool_id":"pool-0","replica_id":"r0","engine":"llamacpp","url":"{url}"{more}}}"#)
    }

    #[test]
    fn a_handoff_alone_is_enough() {
        let source = one(
            &file("http://localhost:8081", r#","engine_version":"v1","slots":4"#),
            &[],
        )
        .unwrap();
        assert_eq!(source.origin.authority(), "localhost:8081");
        assert_eq!(
            (source.traits.slots, source.traits.engine_version.as_deref()),
            (Some(4), Some("v1"))
        );
        assert!(source.traits.cancel_on_stream_only && source.paths.slots.is_some());
    }

    #[test]
    fn an_engine_beyond_loopback_is_refused_with_the_reason() {
        for url in [
            "http://10.0.0.1:8081",
            "http://169.254.169.254",
            "http://localhost.example:1",
            "http://0.0.0.0:1",
        ] {
            let refused = one(&file(url, ""), &[]).unwrap_err();
            assert_eq!(refused.state, ReplicaState::Failed);
            assert!(refused.note.unwrap().contains("not on loopback"), "{url}");
        }
        assert!(one(&file("http://[::1]:1", ""), &[]).is_ok());
    }

    #[test]
    fn another_process_at_the_same_address_is_another_engine() {
        let identity = |more| one(&file("http://localhost:1", more), &[]).unwrap().identity;
        assert_eq!(
            identity(r#","slots":4"#),
            identity(r#","slots":8,"engine_version":"v2""#)
        );
        assert_ne!(identity(r#","pid":1"#), identity(r#","pid":2"#));
        assert_ne!(
            identity(r#","pid":1,"start_time_ticks":1"#),
            identity(r#","pid":1,"start_time_ticks":2"#)
        );
    }

    #[test]
    fn what_the_handoff_leaves_open_the_pool_fills_in() {
        let mut settings = PoolSettings::with_model("pool-0".parse().unwrap(), "/m.gguf");
        settings.slots = Some(6);
        settings.embeddings = true;
        settings.aliases = vec!["small".to_owned()];
        settings.gpus = Some(vec![1]);
        let (pools, _) = check_pools(vec![settings], None, &AgentsConfig::default()).unwrap();
        let traits = one(&file("http://localhost:1", ""), &pools).unwrap().traits;
        assert_eq!((traits.slots, traits.gpus), (Some(6), Some(vec![1])));
        assert_eq!(traits.model_aliases, ["small"]);
        assert!(
            traits
                .dialects
                .contains(&pool_registry_types::Dialect::Embeddings)
        );
        let traits = one(
            &file("http://localhost:1", r#","slots":2,"device_mask":"0""#),
            &pools,
        )
        .unwrap()
        .traits;
        assert_eq!((traits.slots, traits.gpus), (Some(2), Some(vec![0])));
    }
}
