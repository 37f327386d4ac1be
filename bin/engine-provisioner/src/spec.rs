//! What one engine is to be: the desired state of a replica.

use std::path::PathBuf;

use pool_registry_types::{PoolId, ReplicaId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::recipe::{Recipe, Variant};

/// One engine with one model, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSpec {
    /// The pool that it belongs to.
    pub pool_id: PoolId,
    /// Its name within the pool.
    pub replica_id: ReplicaId,
    /// The engine recipe's name.
    #[serde(default = "default_recipe")]
    pub recipe: String,
    /// Where the model comes from: a path, `hf:ORG/REPO/FILE`, `https:...`, or the name of a model in the store.
    pub model: String,
    /// The name by which clients ask for the model. None: the model file's name without its extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// How many tasks it takes at once.
    #[serde(default = "default_slots")]
    pub slots: u32,
    /// How many tokens one task may hold. 0: the engine takes the model's own, shared by the slots.
    #[serde(default)]
    pub context_length: u32,
    /// How many threads it computes on. None: the engine chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The GPUs that it may use, as the driver counts them ("0,1"). None: those of the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mask: Option<String>,
    /// What the pool asks for beyond the plain engine, such as `embeddings`: names from the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Arguments to add to the engine's command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_args: Vec<String>,
    /// Which build of the engine. None: what suits the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<Variant>,
    /// The engine's program, when it is not to be looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
}

/// What is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// There must be room for at least one task, and not for more than engines can bear.
    #[error("`slots` is {0}; 1 to {SLOTS_MAX} are possible")]
    Slots(u32),
    /// Slots times context is more than an engine can count.
    #[error(
        "`context_length` {context_length} times {slots} slots is too much; {CONTEXT_TOTAL_MAX} tokens are possible"
    )]
    Context {
        /// Tokens per slot.
        context_length: u32,
        /// Slots.
        slots: u32,
    },
    /// The recipe has no such feature.
    #[error("the engine recipe {recipe} has no feature {feature:?}; it has {known}")]
    Feature {
        /// Which recipe.
        recipe: String,
        /// The feature asked for.
        feature: String,
        /// The features that there are.
        known: String,
    },
    /// The recipe is one for engines that run already.
    #[error("the engine recipe {0} is for engines that run already: name one by its URL")]
    NotStartable(String),
    /// The device mask is no list of numbers.
    #[error("`device_mask` is {0:?}; it must be numbers between commas (\"0,1\"), \"all\" or \"none\"")]
    DeviceMask(String),
}

/// The most slots that a spec may ask for.
pub const SLOTS_MAX: u32 = 1024;

/// The most tokens that all slots together may hold.
pub const CONTEXT_TOTAL_MAX: u32 = i32::MAX as u32;

impl EngineSpec {
    /// A spec with one slot and everything else as it comes.
    pub fn new(pool_id: PoolId, replica_id: ReplicaId, model: impl Into<String>) -> Self {
        Self {
            pool_id,
            replica_id,
            recipe: default_recipe(),
            model: model.into(),
            model_name: None,
            slots: default_slots(),
            context_length: 0,
            threads: None,
            device_mask: None,
            features: Vec::new(),
            extra_args: Vec::new(),
            variant: None,
            program: None,
        }
    }

    /// Tells apart engines that were started from different specs: 16 hex digits, the same for equal specs.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("a spec is made of texts and numbers");
        let digest = Sha256::digest(&json);
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Checks what can be checked before anything is fetched.
    pub fn check(&self, recipe: &Recipe) -> Result<(), SpecError> {
        if recipe.start.is_none() {
            return Err(SpecError::NotStartable(recipe.name.clone()));
        }
        if !(1..=SLOTS_MAX).contains(&self.slots) {
            return Err(SpecError::Slots(self.slots));
        }
        if self
            .context_length
            .checked_mul(self.slots)
            .is_none_or(|total| total > CONTEXT_TOTAL_MAX)
        {
            return Err(SpecError::Context {
                context_length: self.context_length,
                slots: self.slots,
            });
        }
        if let Some(feature) = self
            .features
            .iter()
            .find(|feature| !recipe.features.contains_key(*feature))
        {
            let known: Vec<&str> = recipe.features.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            return Err(SpecError::Feature {
                recipe: recipe.name.clone(),
                feature: feature.clone(),
                known,
            });
        }
        self.device_mask.as_deref().map_or(Ok(()), check_device_mask)
    }
}

/// Checks a device mask: numbers between commas, or a word.
pub fn check_device_mask(mask: &str) -> Result<(), SpecError> {
    let numbers = || mask.split(',').all(|number| number.trim().parse::<u32>().is_ok());
    if matches!(mask, "all" | "none") || numbers() {
        return Ok(());
    }
    Err(SpecError::DeviceMask(mask.to_owned()))
}

fn default_recipe() -> String {
    "llamacpp".to_owned()
}

fn default_slots() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> EngineSpec {
        EngineSpec::new(
            PoolId::new("pool-0").unwrap(),
            ReplicaId::new("r0").unwrap(),
            "/models/m.gguf",
        )
    }

    #[test]
    fn equal_specs_have_equal_hashes_and_others_do_not() {
        assert_eq!(spec().hash(), spec().hash());
        assert_eq!(spec().hash().len(), 16);
        assert_ne!(spec().hash(), EngineSpec { slots: 2, ..spec() }.hash());
        let json = serde_json::to_string(&spec()).unwrap();
        assert_eq!(serde_json::from_str::<EngineSpec>(&json).unwrap(), spec());
        let short = r#"{"pool_id":"pool-0","replica_id":"r0","model":"/models/m.gguf"}"#;
        assert_eq!(serde_json::from_str::<EngineSpec>(short).unwrap(), spec());
    }

    fn check(spec: &EngineSpec, expect: &str) {
        let recipe = Recipe::load(&spec.recipe, None).unwrap();
        let message = spec
            .check(&recipe)
            .map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(message, expect);
    }

    #[test]
    fn a_spec_that_cannot_work_is_refused_with_the_reason() {
        check(&spec(), "");
        check(
            &EngineSpec {
                device_mask: Some("0,1".into()),
                features: vec!["embeddings".into()],
                ..spec()
            },
            "",
        );
        check(
            &EngineSpec { slots: 0, ..spec() },
            "`slots` is 0; 1 to 1024 are possible",
        );
        check(
            &EngineSpec {
                context_length: u32::MAX,
                slots: 2,
                ..spec()
            },
            "`context_length` 4294967295 times 2 slots is too much; 2147483647 tokens are possible",
        );
        check(
            &EngineSpec {
                features: vec!["embed".into()],
                ..spec()
            },
            "the engine recipe llamacpp has no feature \"embed\"; it has embeddings, rerank",
        );
        check(
            &EngineSpec {
                recipe: "vllm".into(),
                ..spec()
            },
            "the engine recipe vllm is for engines that run already: name one by its URL",
        );
        check(
            &EngineSpec {
                device_mask: Some("gpu0".into()),
                ..spec()
            },
            "`device_mask` is \"gpu0\"; it must be numbers between commas (\"0,1\"), \"all\" or \"none\"",
        );
    }
}
