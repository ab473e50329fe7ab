; A section reaches to the next heading of its rank, so headings nest.
(section . (atx_heading heading_content: (inline) @name)) @definition.heading
; Underlined headings begin no section in this grammar.
(setext_heading heading_content: (paragraph) @name) @definition.heading
