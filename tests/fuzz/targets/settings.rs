//! The file of settings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::config::{Loaded, Overrides, load};
use vhost_agent_fuzz::Tree;

fuzz_target!(|text: &str| {
    let tree = Tree::empty();
    let read = |text: &str| {
        tree.put("config.toml", text.as_bytes());
        let config = Some(tree.path().join("config.toml"));
        load(&Overrides { config, ..Overrides::default() }, std::iter::empty())
    };
    let Ok(Loaded { settings, .. }) = read(text) else { return };
    let _ = settings.target_policy();
    let written = toml::to_string(&settings).expect("settings can be written");
    match read(&written) {
        Ok(again) => assert_eq!(again.settings, settings, "{written}"),
        Err(e) => panic!("{e}\n{written}"),
    }
});
