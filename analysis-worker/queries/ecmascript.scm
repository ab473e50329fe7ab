; What JavaScript and TypeScript share. A name bound to a function is a function, whatever binds it.
(function_declaration name: (_) @name) @definition.function
(generator_function_declaration name: (_) @name) @definition.function
(function_expression name: (identifier) @name) @definition.function
(class_declaration name: (_) @name) @definition.class
(method_definition name: (_) @name) @definition.method
(lexical_declaration
  (variable_declarator name: (identifier) @name value: [(arrow_function) (function_expression) (generator_function)]))
  @definition.function
(variable_declaration
  (variable_declarator name: (identifier) @name value: [(arrow_function) (function_expression) (generator_function)]))
  @definition.function
(lexical_declaration (variable_declarator name: (identifier) @name value: (class))) @definition.class
(variable_declaration (variable_declarator name: (identifier) @name value: (class))) @definition.class
(lexical_declaration kind: "const" (variable_declarator name: (identifier) @name)) @definition.constant
(lexical_declaration kind: "let" (variable_declarator name: (identifier) @name)) @definition.variable
(variable_declaration (variable_declarator name: (identifier) @name)) @definition.variable
(expression_statement
  (assignment_expression
    left: (member_expression object: (_) @container property: (property_identifier) @name)
    right: [(arrow_function) (function_expression) (generator_function)]))
  @definition.function
(expression_statement
  (assignment_expression
    left: (member_expression object: (_) @container property: (property_identifier) @name)
    right: (class)))
  @definition.class
(expression_statement
  (assignment_expression
    left: (identifier) @name
    right: [(arrow_function) (function_expression) (generator_function)]))
  @definition.function
((expression_statement
  (assignment_expression
    left: (member_expression
      object: (member_expression property: (property_identifier) @_prototype) @container
      property: (property_identifier) @name)))
  @definition.method
  (#eq? @_prototype "prototype"))
((expression_statement
  (assignment_expression
    left: (member_expression object: (_) @container property: (property_identifier) @name)))
  @definition.variable
  (#any-of? @container "exports" "module.exports"))
(pair key: (_) @name value: [(arrow_function) (function_expression) (generator_function)]) @definition.method

; What is bound inside a function without a name is local as well.
(arrow_function) @local
(function_expression) @local
(generator_function) @local

(import_statement source: (string) @path) @import.module
(export_statement source: (string) @path) @import.module
((call_expression function: (identifier) @_require arguments: (arguments . (string) @path)) @import.module
  (#eq? @_require "require"))
(call_expression function: (import) arguments: (arguments . (string) @path)) @import.module

(call_expression function: (identifier) @name) @reference.call
(call_expression function: (member_expression property: (property_identifier) @name)) @reference.call
(new_expression constructor: (identifier) @name) @reference.call
(new_expression constructor: (member_expression property: (property_identifier) @name)) @reference.call

(comment) @comment
