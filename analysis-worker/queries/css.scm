(rule_set (selectors) @name) @definition.selector
(keyframes_statement (keyframes_name) @name) @definition.selector

(import_statement (string_value) @path) @import.file
(import_statement (call_expression (arguments [(string_value) (plain_value)] @path))) @import.file

(comment) @comment
