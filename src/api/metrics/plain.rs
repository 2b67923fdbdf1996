//! Metrics page for callers that do not ask for OpenMetrics: the older text format, which every scraper reads.
//!
//! Two things differ in the older format: the names in `# HELP` and `# TYPE` of a counter end with `_total`, as in its
//! lines, and there is no last line `# EOF`. (<https://prometheus.io/docs/instrumenting/exposition_formats/>)

/// Bytes of `# HELP ` and of `# TYPE `.
const HEAD: usize = 7;

/// Name of the family, if `line` declares a counter.
fn counter(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.strip_suffix(" counter")
}

/// Converts the page to the older format.
pub(super) fn plain(page: &str) -> String {
    let mut text = String::with_capacity(page.len() + 1024);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        // The line `# HELP` of a family comes right before its `# TYPE`, which tells whether it is a counter's.
        let name = counter(line).or_else(|| lines.peek().copied().and_then(counter));
        let rest = |name| line.get(HEAD..)?.strip_prefix(name);
        match name.filter(|_| line.starts_with("# ")).and_then(|name| Some((name, rest(name)?))) {
            _ if line == "# EOF" => continue,
            Some((name, rest)) => {
                text.extend([&line[..HEAD], name, "_total", rest]);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn counters_are_named_as_their_lines_are_and_the_rest_stays() {
        let page = "# HELP a Help.\n# TYPE a counter\na_total{x=\"# TYPE b counter\"} 1\n\
                    # HELP a_b Help of a.\n# TYPE a_b gauge\na_b 2\n# HELP c C.\n# TYPE c counter\nc_total 3\n# EOF\n";
        let expected = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"# TYPE b counter\"} 1\n\
                        # HELP a_b Help of a.\n# TYPE a_b gauge\na_b 2\n# HELP c_total C.\n# TYPE c_total counter\nc_total 3\n";
        assert_eq!(plain(page), expected);
        assert_eq!(plain("# EOF\n"), "");
    }
}
