(class name: (_) @name) @definition.class
(module name: (_) @name) @definition.module
(method name: (_) @name) @definition.method
(singleton_method name: (_) @name) @definition.method
(assignment left: (constant) @name) @definition.constant
((call method: (identifier) @_attribute arguments: (argument_list (simple_symbol) @name)) @definition.field
  (#any-of? @_attribute "attr_accessor" "attr_reader" "attr_writer"))

((call method: (identifier) @_require arguments: (argument_list . (string (string_content) @path))) @import.module
  (#any-of? @_require "require" "load"))
((call method: (identifier) @_require arguments: (argument_list . (string (string_content) @path))) @import.relative
  (#eq? @_require "require_relative"))

(call method: (identifier) @name) @reference.call
(constant) @reference.type

(comment) @comment
